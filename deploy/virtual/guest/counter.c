// A TCG plugin for QEMU's user-mode emulators: how many instructions the guest has executed at each mark.
//
// A mark is the system call getpriority(0x6465706c, label), which does nothing; mark.h makes one.  For each, one line
// "label executed threads" goes to the file of the argument out=PATH.  `executed` is the sum over all threads since the
// start, in user space; the host takes differences.  It is added to without a lock: it is exact while there is one thread,
// and `threads`, how many there have been so far, is what lets the host refuse the rest.
//
// QEMU ships neither a header nor a library for plugins.  What follows are the few declarations of API version 1
// (QEMU 4.2 to 8.1; include/qemu/qemu-plugin.h there) that this file uses.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;  // a translation block: straight-line code, entered at its first instruction only
enum { ADD_U64 = 0 };   // enum qemu_plugin_op

struct info {  // qemu_info_t
  const char* target_name;
  struct {
    int min, cur;
  } version;
  bool system_emulation;
  struct {
    int smp_vcpus, max_vcpus;
  } system;
};

typedef void on_vcpu(plugin_id, unsigned vcpu);
typedef void on_translate(plugin_id, struct qemu_plugin_tb*);
typedef void on_syscall(plugin_id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                        uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
extern void qemu_plugin_register_vcpu_init_cb(plugin_id, on_vcpu*);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translate*);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall*);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, int op, void* at, uint64_t value);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

static const uint64_t kMark = 0x6465706c;
static uint64_t executed;
static unsigned threads;
static int64_t getpriority_number;
static FILE* out;

static void translated(plugin_id id, struct qemu_plugin_tb* block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void started(plugin_id id, unsigned vcpu) {
  (void)id;
  (void)vcpu;
  ++threads;
}

static void called(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number == getpriority_number && a1 == kMark) {
    fprintf(out, "%d %llu %u\n", (int)a2, (unsigned long long)executed, threads);
    fflush(out);  // the guest may fork, and a buffer would then be written twice
  }
}

EXPORT int qemu_plugin_install(plugin_id id, const struct info* info, int argc, char** argv) {
  if (info->system_emulation) return 1;  // there are no system calls to see
  for (int i = 0; i < argc; ++i) {
    if (strncmp(argv[i], "out=", 4) == 0) out = fopen(argv[i] + 4, "a");
  }
  if (out == NULL) return 1;
  getpriority_number = strcmp(info->target_name, "arm") == 0 ? 96 : 141;  // EABI; aarch64
  qemu_plugin_register_vcpu_init_cb(id, started);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
