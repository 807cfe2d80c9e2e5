// The calls that clang's -fsanitize=thread pass puts before every memory access, handed on to the
// runtime. They stand in for ThreadSanitizer's own run-time library, which is not linked.
#pragma once

#include "barrier.h"

#define MSL_CALLBACK \
  extern "C" __attribute__((visibility("hidden"), used, noinline, nodebug)) MSL_UNCHECKED
#define MSL_ACCESS(DATA, N, BITS) \
  __msl_library.runtime->access(DATA, N, BITS, __builtin_return_address(0))

MSL_CALLBACK void __tsan_init() {}
MSL_CALLBACK void __tsan_func_entry(void*) {}
MSL_CALLBACK void __tsan_func_exit() {}

#define MSL_SIZE(N)                                                                     \
  MSL_CALLBACK void __tsan_read##N(void* p) { MSL_ACCESS(p, N, 0); }                    \
  MSL_CALLBACK void __tsan_write##N(void* p) { MSL_ACCESS(p, N, kMslWrite); }           \
  MSL_CALLBACK void __tsan_unaligned_read##N(void* p) { MSL_ACCESS(p, N, 0); }          \
  MSL_CALLBACK void __tsan_unaligned_write##N(void* p) { MSL_ACCESS(p, N, kMslWrite); } \
  MSL_CALLBACK void __tsan_volatile_read##N(void* p) { MSL_ACCESS(p, N, 0); }           \
  MSL_CALLBACK void __tsan_volatile_write##N(void* p) { MSL_ACCESS(p, N, kMslWrite); }  \
  MSL_CALLBACK void __tsan_read_write##N(void* p) {                                     \
    MSL_ACCESS(p, N, 0);                                                                \
    MSL_ACCESS(p, N, kMslWrite);                                                        \
  }                                                                                     \
  MSL_CALLBACK void __tsan_unaligned_read_write##N(void* p) {                           \
    MSL_ACCESS(p, N, 0);                                                                \
    MSL_ACCESS(p, N, kMslWrite);                                                        \
  }
MSL_SIZE(1)
MSL_SIZE(2)
MSL_SIZE(4)
MSL_SIZE(8)
MSL_SIZE(16)
#undef MSL_SIZE

MSL_CALLBACK void __tsan_read_range(void* p, ulong n) { MSL_ACCESS(p, n, 0); }
MSL_CALLBACK void __tsan_write_range(void* p, ulong n) { MSL_ACCESS(p, n, kMslWrite); }
MSL_CALLBACK void* __tsan_memcpy(void* to, const void* from, ulong n) {
  MSL_ACCESS(from, n, 0);
  MSL_ACCESS(to, n, kMslWrite);
  return __builtin_memcpy(to, from, n);
}
MSL_CALLBACK void* __tsan_memmove(void* to, const void* from, ulong n) {
  MSL_ACCESS(from, n, 0);
  MSL_ACCESS(to, n, kMslWrite);
  return __builtin_memmove(to, from, n);
}
MSL_CALLBACK void* __tsan_memset(void* to, int value, ulong n) {
  MSL_ACCESS(to, n, kMslWrite);
  return __builtin_memset(to, value, n);
}

MSL_CALLBACK uint __tsan_atomic32_load(const volatile uint* p, int) {
  MSL_ACCESS(p, 4, kMslAtomic);
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
MSL_CALLBACK void __tsan_atomic32_store(volatile uint* p, uint v, int) {
  MSL_ACCESS(p, 4, kMslAtomic | kMslWrite);
  __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
MSL_CALLBACK uint __tsan_atomic32_exchange(volatile uint* p, uint v, int) {
  MSL_ACCESS(p, 4, kMslAtomic | kMslWrite);
  return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
MSL_CALLBACK uint __tsan_atomic32_fetch_add(volatile uint* p, uint v, int) {
  MSL_ACCESS(p, 4, kMslAtomic | kMslWrite);
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
MSL_CALLBACK uint
__tsan_atomic32_compare_exchange_val(volatile uint* p, uint expected, uint v, int, int) {
  MSL_ACCESS(p, 4, kMslAtomic | kMslWrite);
  __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
MSL_CALLBACK int __tsan_atomic32_compare_exchange_strong(
    volatile uint* p, uint* expected, uint v, int, int) {
  MSL_ACCESS(p, 4, kMslAtomic | kMslWrite);
  return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
MSL_CALLBACK int __tsan_atomic32_compare_exchange_weak(
    volatile uint* p, uint* expected, uint v, int success, int failure) {
  return __tsan_atomic32_compare_exchange_strong(p, expected, v, success, failure);
}
#undef MSL_ACCESS
#undef MSL_CALLBACK
