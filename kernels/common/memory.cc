#include "common/memory.h"

#include <pthread.h>
#include <stdlib.h>

namespace deploy {
namespace {

constexpr size_t kHeaderBytes = 64;  ///< In front of a thread's scratch: how large it is.

pthread_once_t g_once = PTHREAD_ONCE_INIT;
pthread_key_t g_key;
bool g_key_made;

void make_key() { g_key_made = pthread_key_create(&g_key, free) == 0; }

}  // namespace

uint8_t* allocate(size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, bytes ? bytes : 1) != 0) return nullptr;
  return static_cast<uint8_t*>(block);
}

uint8_t* thread_scratch(size_t bytes) {
  pthread_once(&g_once, make_key);
  if (!g_key_made || bytes > SIZE_MAX - kHeaderBytes) return nullptr;
  uint8_t* block = static_cast<uint8_t*>(pthread_getspecific(g_key));
  if (block && *reinterpret_cast<size_t*>(block) >= bytes) return block + kHeaderBytes;
  free(block);
  block = allocate(kHeaderBytes + bytes);
  if (block) *reinterpret_cast<size_t*>(block) = bytes;
  if (pthread_setspecific(g_key, block) != 0) {
    free(block);
    return nullptr;
  }
  return block ? block + kHeaderBytes : nullptr;
}

}  // namespace deploy
