// Constructor calls and bit casts. The rewriter turns `float4(a, b)` into `msl_make<float4>(a, b)`:
// plain clang has no constructors for vectors. The same goes for T(...) of a template parameter.
#pragma once

#include "types.h"

/// Scalars and classes.
template <class T>
struct msl_maker {
  template <class... Args>
  MSL_NODEBUG static constexpr T make(Args... args) {
    return T(args...);
  }
};

template <class E, int N>
struct msl_maker<E __attribute__((ext_vector_type(N)))> {
  typedef E V __attribute__((ext_vector_type(N)));

  template <class A>
  MSL_NODEBUG static constexpr void append(MSL_THREAD V& v, MSL_THREAD int& i, A a) {
    if constexpr (msl_traits<A>::n == 1) {
      v[i++] = (E)a;
    } else {
      for (int k = 0; k < msl_traits<A>::n; ++k) v[i++] = (E)a[k];
    }
  }

  MSL_NODEBUG static constexpr V make() { return (V)((E)0); }
  template <class F, int M>
  MSL_NODEBUG static V make(metal::msl_packed<F, M> a) {
    typename metal::msl_packed<F, M>::V v = a;
    return make(v);
  }
  template <class A>
  MSL_NODEBUG static constexpr V make(A a) {
    if constexpr (msl_traits<A>::n == 1) {
      return (V)((E)a);
    } else {
      static_assert(msl_traits<A>::n == N, "MSL: vector constructor from a vector of another size");
      return __builtin_convertvector(a, V);
    }
  }
  template <class A, class B, class... Rest>
  MSL_NODEBUG static constexpr V make(A a, B b, Rest... rest) {
    static_assert(
        msl_traits<A>::n + msl_traits<B>::n + (0 + ... + msl_traits<Rest>::n) == N,
        "MSL: wrong number of vector components");
    V v = (V)((E)0);
    int i = 0;
    append(v, i, a);
    append(v, i, b);
    (append(v, i, rest), ...);
    return v;
  }
};

template <class T, class... Args>
MSL_INLINE constexpr T msl_make(Args... args) {
  return msl_maker<T>::make(args...);
}

template <class T, class F>
MSL_INLINE T as_type(F f) {
  static_assert(sizeof(T) == sizeof(F), "as_type needs equal sizes");
  return __builtin_bit_cast(T, f);
}

#if defined(MSL_EXEC)
// Conversions that clang leaves to its run-time library, which need not be there.
extern "C" __attribute__((weak, visibility("hidden"), used)) MSL_NODEBUG MSL_UNCHECKED bfloat
__truncsfbf2(float x) {
  const uint u = __builtin_bit_cast(uint, x);
  const uint rounded = (u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u  // NaN stays NaN
                                                       : u + 0x7fffu + (u >> 16 & 1u);
  return __builtin_bit_cast(bfloat, (ushort)(rounded >> 16));
}
#endif
