// Relaxed atomics on 32-bit values, as Metal has them.
#pragma once

#include "types.h"

enum msl_memory_order { kMslRelaxed };

namespace metal {
MSL_NAMESPACE_CONST msl_memory_order memory_order_relaxed = kMslRelaxed;
template <class T>
struct atomic {
  T value;
};
}  // namespace metal

#if defined(MSL_LINT)
// OpenCL has types of these names.
#define atomic_int msl_atomic_int
#define atomic_uint msl_atomic_uint
#define atomic_float msl_atomic_float
#define atomic_bool msl_atomic_bool
#endif
using atomic_int = metal::atomic<int>;
using atomic_uint = metal::atomic<uint>;
using atomic_float = metal::atomic<float>;
using atomic_bool = metal::atomic<int>;

namespace metal {

#if defined(MSL_LINT)

#define MSL_ATOMIC(NAME)                                                                   \
  template <class T>                                                                       \
  T atomic_##NAME##_explicit(volatile __global atomic<T>* p, T x, msl_memory_order order); \
  template <class T>                                                                       \
  T atomic_##NAME##_explicit(volatile __local atomic<T>* p, T x, msl_memory_order order);
MSL_ATOMIC(exchange)
MSL_ATOMIC(fetch_add)
MSL_ATOMIC(fetch_sub)
MSL_ATOMIC(fetch_max)
MSL_ATOMIC(fetch_min)
MSL_ATOMIC(fetch_or)
MSL_ATOMIC(fetch_and)
MSL_ATOMIC(fetch_xor)
#undef MSL_ATOMIC
#define MSL_ATOMIC(SPACE)                                                               \
  template <class T>                                                                    \
  T atomic_load_explicit(const volatile SPACE atomic<T>* p, msl_memory_order order);    \
  template <class T>                                                                    \
  void atomic_store_explicit(volatile SPACE atomic<T>* p, T x, msl_memory_order order); \
  template <class T>                                                                    \
  bool atomic_compare_exchange_weak_explicit(                                           \
      volatile SPACE atomic<T>* p,                                                      \
      __private T* expected,                                                            \
      T desired,                                                                        \
      msl_memory_order success,                                                         \
      msl_memory_order failure);
MSL_ATOMIC(__global)
MSL_ATOMIC(__local)
#undef MSL_ATOMIC

#else

template <class T>
MSL_INLINE T atomic_load_explicit(const volatile atomic<T>* p, msl_memory_order) {
  T r;
  __atomic_load((const T*)&p->value, &r, __ATOMIC_RELAXED);
  return r;
}
template <class T>
MSL_INLINE void atomic_store_explicit(volatile atomic<T>* p, T x, msl_memory_order) {
  __atomic_store((T*)&p->value, &x, __ATOMIC_RELAXED);
}
template <class T>
MSL_INLINE T atomic_exchange_explicit(volatile atomic<T>* p, T x, msl_memory_order) {
  T r;
  __atomic_exchange((T*)&p->value, &x, &r, __ATOMIC_RELAXED);
  return r;
}
template <class T>
MSL_INLINE bool atomic_compare_exchange_weak_explicit(
    volatile atomic<T>* p, T* expected, T desired, msl_memory_order, msl_memory_order) {
  return __atomic_compare_exchange(
      (T*)&p->value, expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
#define MSL_ATOMIC(NAME, EXPRESSION)                                                          \
  template <class T>                                                                          \
  MSL_INLINE T atomic_fetch_##NAME##_explicit(volatile atomic<T>* p, T x, msl_memory_order) { \
    T old;                                                                                    \
    __atomic_load((T*)&p->value, &old, __ATOMIC_RELAXED);                                     \
    for (;;) {                                                                                \
      T changed = EXPRESSION;                                                                 \
      if (__atomic_compare_exchange(                                                          \
              (T*)&p->value, &old, &changed, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {    \
        return old;                                                                           \
      }                                                                                       \
    }                                                                                         \
  }
MSL_ATOMIC(add, old + x)
MSL_ATOMIC(sub, old - x)
MSL_ATOMIC(max, old > x ? old : x)
MSL_ATOMIC(min, old < x ? old : x)
MSL_ATOMIC(or, old | x)
MSL_ATOMIC(and, old& x)
MSL_ATOMIC(xor, old ^ x)
#undef MSL_ATOMIC

#endif

}  // namespace metal
