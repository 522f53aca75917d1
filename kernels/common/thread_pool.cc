#include "common/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

namespace deploy {
namespace {

constexpr int32_t kMaxWorkers = 63;

/// How long a thread watches for work, or for the end of it, before it sleeps: about as long as waking it takes, which is
/// as long as a small layer.
constexpr int64_t kWatchNs = 50 * 1000;

/// The layer being computed.  `generation` tells workers that there is a new one.
struct Pool {
  pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;  ///< held by the caller whose layer is computed
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   ///< guards all below
  pthread_cond_t begin = PTHREAD_COND_INITIALIZER;
  pthread_cond_t end = PTHREAD_COND_INITIALIZER;
  pid_t pid = 0;
  int32_t workers = 0;
  uint32_t generation = 0;  ///< atomic: watched without the lock
  int32_t wanted = 0;       ///< workers that may still join this layer
  int32_t active = 0;       ///< atomic, likewise: workers that have joined and are not done
  size_t units = 0;
  size_t next = 0;  ///< atomic
  void (*work)(void*, size_t) = nullptr;
  void* context = nullptr;
};

Pool g_pool;

int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

/// Returns when `seen` says so, or after kWatchNs.  Whoever else could use the CPU has it meanwhile: there may be more
/// threads than CPUs, and the stock runtime has a pool of its own.
template <class Seen>
void watch(Seen seen) {
  const int64_t end = now_ns() + kWatchNs;
  while (!seen() && now_ns() < end) sched_yield();
}

void take_units(void (*work)(void*, size_t), void* context, size_t units) {
  for (;;) {
    const size_t unit = __atomic_fetch_add(&g_pool.next, 1, __ATOMIC_RELAXED);
    if (unit >= units) return;
    work(context, unit);
  }
}

void* worker(void*) {
  Pool& pool = g_pool;
  uint32_t seen = 0;
  for (;;) {
    watch([&] { return __atomic_load_n(&pool.generation, __ATOMIC_RELAXED) != seen; });
    pthread_mutex_lock(&pool.lock);
    while (pool.generation == seen || pool.wanted == 0) pthread_cond_wait(&pool.begin, &pool.lock);
    seen = pool.generation;
    --pool.wanted;
    __atomic_add_fetch(&pool.active, 1, __ATOMIC_RELAXED);
    void (*const work)(void*, size_t) = pool.work;
    void* const context = pool.context;
    const size_t units = pool.units;
    pthread_mutex_unlock(&pool.lock);
    take_units(work, context, units);
    pthread_mutex_lock(&pool.lock);
    if (__atomic_sub_fetch(&pool.active, 1, __ATOMIC_RELAXED) == 0) pthread_cond_signal(&pool.end);
    pthread_mutex_unlock(&pool.lock);
  }
}

/// Starts workers until there are `count`, as far as the system lets us.
void start_workers(int32_t count) {
  Pool& pool = g_pool;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  for (; pool.workers < count && pool.workers < kMaxWorkers; ++pool.workers) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, worker, nullptr) != 0) break;
  }
  pthread_attr_destroy(&attributes);
}

}  // namespace

void parallel_for(size_t units, int32_t threads, void (*work)(void* context, size_t unit), void* context) {
  Pool& pool = g_pool;
  if (threads > 1 && static_cast<size_t>(threads) > units) threads = static_cast<int32_t>(units);
  if (threads <= 1 || pthread_mutex_trylock(&pool.owner) != 0) {
    for (size_t unit = 0; unit < units; ++unit) work(context, unit);
    return;
  }
  pthread_mutex_lock(&pool.lock);
  if (pool.pid != getpid()) {  // workers do not survive fork()
    pool.pid = getpid();
    pool.workers = pool.active = 0;
  }
  if (pool.workers < threads - 1) start_workers(threads - 1);
  pool.work = work;
  pool.context = context;
  pool.units = units;
  pool.wanted = threads - 1;
  __atomic_add_fetch(&pool.generation, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&pool.next, size_t{0}, __ATOMIC_RELAXED);
  pthread_cond_broadcast(&pool.begin);
  pthread_mutex_unlock(&pool.lock);
  take_units(work, context, units);
  pthread_mutex_lock(&pool.lock);
  pool.wanted = 0;  // who has not come yet is not needed any more
  pthread_mutex_unlock(&pool.lock);
  watch([&] { return __atomic_load_n(&pool.active, __ATOMIC_RELAXED) == 0; });
  pthread_mutex_lock(&pool.lock);
  while (pool.active > 0) pthread_cond_wait(&pool.end, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
  pthread_mutex_unlock(&pool.owner);
}

}  // namespace deploy
