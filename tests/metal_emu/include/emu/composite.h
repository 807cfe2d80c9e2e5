// Packed vectors, and small matrices (column major, as in Metal).
#pragma once

#include "maths.h"

namespace metal {

/// Aligned like its elements.
template <class E, int N>
struct msl_packed {
  typedef E V __attribute__((ext_vector_type(N)));
  E v[N];

  msl_packed() = default;
  MSL_NODEBUG msl_packed(V a) {
    for (int i = 0; i < N; ++i) v[i] = a[i];
  }
  MSL_NODEBUG operator V() const {
    V r;
    for (int i = 0; i < N; ++i) r[i] = v[i];
    return r;
  }
#if defined(MSL_LINT)
  operator V() const __global;
  operator V() const __local;
  operator V() const __constant;
  E operator[](int i) const __global;
  E operator[](int i) const __local;
  E operator[](int i) const __constant;
  __global E& operator[](int i) __global;
  __local E& operator[](int i) __local;
#endif
  MSL_NODEBUG MSL_THREAD E& operator[](int i) { return v[i]; }
  MSL_NODEBUG E operator[](int i) const { return v[i]; }
};

}  // namespace metal

#define MSL_PACKED(T)                            \
  using packed_##T##2 = metal::msl_packed<T, 2>; \
  using packed_##T##3 = metal::msl_packed<T, 3>; \
  using packed_##T##4 = metal::msl_packed<T, 4>;
MSL_PACKED(float)
MSL_PACKED(half)
MSL_PACKED(char)
MSL_PACKED(uchar)
MSL_PACKED(short)
MSL_PACKED(ushort)
MSL_PACKED(int)
MSL_PACKED(uint)
#undef MSL_PACKED

/// C columns of R rows.
template <class E, int C, int R>
struct msl_matrix {
  typedef E V __attribute__((ext_vector_type(R)));
  V columns[C];

  msl_matrix() = default;
  MSL_NODEBUG explicit msl_matrix(E diagonal) {
    for (int i = 0; i < C; ++i) {
      columns[i] = (V)((E)0);
      if (i < R) columns[i][i] = diagonal;
    }
  }
  MSL_NODEBUG msl_matrix(V a, V b) {
    static_assert(C == 2);
    columns[0] = a;
    columns[1] = b;
  }
  MSL_NODEBUG msl_matrix(V a, V b, V c) {
    static_assert(C == 3);
    columns[0] = a;
    columns[1] = b;
    columns[2] = c;
  }
  MSL_NODEBUG msl_matrix(V a, V b, V c, V d) {
    static_assert(C == 4);
    columns[0] = a;
    columns[1] = b;
    columns[2] = c;
    columns[3] = d;
  }
  template <class F>
  MSL_NODEBUG explicit msl_matrix(const MSL_THREAD msl_matrix<F, C, R>& o) {
    for (int i = 0; i < C; ++i) columns[i] = __builtin_convertvector(o.columns[i], V);
  }
#if defined(MSL_LINT)
  V operator[](int i) const __global;
  V operator[](int i) const __local;
  V operator[](int i) const __constant;
  __global V& operator[](int i) __global;
  __local V& operator[](int i) __local;
#endif
  MSL_NODEBUG MSL_THREAD V& operator[](int i) { return columns[i]; }
  MSL_NODEBUG V operator[](int i) const { return columns[i]; }
};

template <class E, int C, int R>
MSL_INLINE msl_vec<E, R> operator*(msl_matrix<E, C, R> m, msl_vec<E, C> v) {
  msl_vec<E, R> r = m.columns[0] * v[0];
  for (int i = 1; i < C; ++i) r += m.columns[i] * v[i];
  return r;
}

#define MSL_MATRICES(T)               \
  using T##2x2 = msl_matrix<T, 2, 2>; \
  using T##2x3 = msl_matrix<T, 2, 3>; \
  using T##2x4 = msl_matrix<T, 2, 4>; \
  using T##3x2 = msl_matrix<T, 3, 2>; \
  using T##3x3 = msl_matrix<T, 3, 3>; \
  using T##3x4 = msl_matrix<T, 3, 4>; \
  using T##4x2 = msl_matrix<T, 4, 2>; \
  using T##4x3 = msl_matrix<T, 4, 3>; \
  using T##4x4 = msl_matrix<T, 4, 4>;
MSL_MATRICES(float)
MSL_MATRICES(half)
MSL_MATRICES(bfloat)
#undef MSL_MATRICES
