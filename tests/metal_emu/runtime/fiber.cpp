#include "fiber.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
asm(R"(
.text
.globl msl_fiber_switch
.hidden msl_fiber_switch
.type msl_fiber_switch, @function
msl_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size msl_fiber_switch, .-msl_fiber_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl msl_fiber_switch
.hidden msl_fiber_switch
.type msl_fiber_switch, %function
msl_fiber_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size msl_fiber_switch, .-msl_fiber_switch
)");
#else
#error "no context switch for this processor"
#endif

namespace msl {

void* new_fiber(char* stack, size_t n_bytes, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(stack + n_bytes);
#if defined(__x86_64__)
  // A return address, so that the stack is aligned as after a call; then what the switch pops.
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(entry);
  sp -= 6;
  memset(sp, 0, 6 * sizeof(void*));
#else
  sp -= 20;
  memset(sp, 0, 20 * sizeof(void*));
  sp[11] = reinterpret_cast<void*>(entry);  // x30, the return address
#endif
  return sp;
}

}  // namespace msl
