// A mark in a program whose instructions are counted (deploy/virtual/count.py): count_mark(label) writes down how many
// have been executed so far.  Outside of the counter it is a system call that fails and changes nothing.
#ifndef DEPLOY_VIRTUAL_GUEST_MARK_H_
#define DEPLOY_VIRTUAL_GUEST_MARK_H_

static inline void count_mark(int label) {
#if defined(__aarch64__)
  register long x0 __asm__("x0") = 0x6465706c;
  register long x1 __asm__("x1") = label;
  register long x8 __asm__("x8") = 141;  // getpriority
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x8) : "memory");
#elif defined(__arm__)
  // r7 is the frame pointer in Thumb code and cannot be bound to a variable there.
  register long r0 __asm__("r0") = 0x6465706c;
  register long r1 __asm__("r1") = label;
  __asm__ volatile("push {r7}\n\tmov r7, #96\n\tsvc #0\n\tpop {r7}" : "+r"(r0) : "r"(r1) : "memory");
#else
  (void)label;
#endif
}

#endif  // DEPLOY_VIRTUAL_GUEST_MARK_H_
