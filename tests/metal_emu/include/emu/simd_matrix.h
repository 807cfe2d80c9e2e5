// simdgroup_matrix, 8x8. Lane l holds two horizontally adjacent elements in the layout that Apple's
// hardware uses (kernels may rely on thread_elements() being two, not on which two).
#pragma once

#include "simd.h"

template <class T, int C, int R>
struct msl_simd_matrix {
  static_assert(C == 8 && R == 8, "MSL: simdgroup matrices are 8x8");
  T e[2];

  msl_simd_matrix() = default;
  /// A diagonal matrix, which nothing here needs: use make_filled_simdgroup_matrix.
  explicit msl_simd_matrix(T diagonal) = delete;
  MSL_NODEBUG MSL_THREAD metal::vec<T, 2>& thread_elements() {
    return *(MSL_THREAD metal::vec<T, 2>*)e;
  }
};

namespace metal {
template <class T, int C, int R>
using simdgroup_matrix = msl_simd_matrix<T, C, R>;
template <class T, int C = 8, int R = C>
MSL_INLINE msl_simd_matrix<T, C, R> make_filled_simdgroup_matrix(T v) {
  msl_simd_matrix<T, C, R> m;
  m.e[0] = v;
  m.e[1] = v;
  return m;
}
}  // namespace metal
using simdgroup_float8x8 = msl_simd_matrix<float, 8, 8>;
using simdgroup_half8x8 = msl_simd_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = msl_simd_matrix<bfloat, 8, 8>;

#if defined(MSL_EXEC)

// Bits of the lane: b4 and b2 b1 choose the row, b3 and b0 the pair of columns.
MSL_INLINE unsigned msl_matrix_row(unsigned l) { return ((l >> 4) & 1) * 4 + ((l >> 1) & 3); }
MSL_INLINE unsigned msl_matrix_column(unsigned l) { return ((l >> 3) & 1) * 4 + (l & 1) * 2; }

template <class T>
struct msl_matrix_args {
  T* d;
  const void *a, *b, *c;
};

/// d = a b + c, or a b without c. Products of 16-bit elements are summed in float.
template <class TD, class TA, class TB, class TC, bool kAccumulate>
struct msl_multiplier {
  MSL_UNCHECKED MSL_NODEBUG static void run(unsigned mask, void* const* in, void* const*) {
    float a[8][8] = {}, b[8][8] = {}, d[8][8] = {};
    MSL_FOR_LANES(l) {
      const msl_matrix_args<TD>& args = MSL_IN(msl_matrix_args<TD>, l);
      const unsigned r = msl_matrix_row(l), c = msl_matrix_column(l);
      for (int k = 0; k < 2; ++k) {
        a[r][c + k] = (float)((const TA*)args.a)[k];
        b[r][c + k] = (float)((const TB*)args.b)[k];
        d[r][c + k] = kAccumulate ? (float)((const TC*)args.c)[k] : 0.0f;
      }
    }
    for (int i = 0; i < 8; ++i) {
      for (int k = 0; k < 8; ++k) {
        const float x = a[i][k];
        for (int j = 0; j < 8; ++j) d[i][j] += x * b[k][j];
      }
    }
    MSL_FOR_LANES(l) {
      const msl_matrix_args<TD>& args = MSL_IN(msl_matrix_args<TD>, l);
      const unsigned r = msl_matrix_row(l), c = msl_matrix_column(l);
      for (int k = 0; k < 2; ++k) args.d[k] = (TD)d[r][c + k];
    }
  }
};

namespace metal {

template <class T, class S>
MSL_INLINE void simdgroup_load(
    msl_simd_matrix<T, 8, 8>& m,
    const S* p,
    ulong stride = 8,
    vec<ulong, 2> origin = vec<ulong, 2>(0),
    bool transpose = false) {
  static_assert(is_same_v<T, S>, "MSL: simdgroup_load does not convert");
  const unsigned l = msl_lane(), r = msl_matrix_row(l), c = msl_matrix_column(l);
  for (unsigned k = 0; k < 2; ++k) {
    const ulong y = transpose ? c + k : r, x = transpose ? r : c + k;
    m.e[k] = p[(origin.y + y) * stride + origin.x + x];
  }
}
template <class T, class S>
MSL_INLINE void simdgroup_store(
    const msl_simd_matrix<T, 8, 8>& m,
    S* p,
    ulong stride = 8,
    vec<ulong, 2> origin = vec<ulong, 2>(0),
    bool transpose = false) {
  static_assert(is_same_v<T, S>, "MSL: simdgroup_store does not convert");
  const unsigned l = msl_lane(), r = msl_matrix_row(l), c = msl_matrix_column(l);
  for (unsigned k = 0; k < 2; ++k) {
    const ulong y = transpose ? c + k : r, x = transpose ? r : c + k;
    p[(origin.y + y) * stride + origin.x + x] = m.e[k];
  }
}
template <class TD, class TA, class TB, class TC>
MSL_INLINE void simdgroup_multiply_accumulate(
    msl_simd_matrix<TD, 8, 8>& d,
    const msl_simd_matrix<TA, 8, 8>& a,
    const msl_simd_matrix<TB, 8, 8>& b,
    const msl_simd_matrix<TC, 8, 8>& c) {
  msl_matrix_args<TD> args{d.e, a.e, b.e, c.e};
  msl_collective(&msl_multiplier<TD, TA, TB, TC, true>::run, &args, nullptr, kMslMatrixOp);
}
template <class TD, class TA, class TB>
MSL_INLINE void simdgroup_multiply(
    msl_simd_matrix<TD, 8, 8>& d,
    const msl_simd_matrix<TA, 8, 8>& a,
    const msl_simd_matrix<TB, 8, 8>& b) {
  msl_matrix_args<TD> args{d.e, a.e, b.e, nullptr};
  msl_collective(&msl_multiplier<TD, TA, TB, TD, false>::run, &args, nullptr, kMslMatrixOp);
}

}  // namespace metal

#undef MSL_IN
#undef MSL_OUT
#undef MSL_FOR_LANES

#else  // MSL_LINT

namespace metal {
#define MSL_MATRIX_MEMORY(SPACE)             \
  template <class T>                         \
  void simdgroup_load(                       \
      __private msl_simd_matrix<T, 8, 8>& m, \
      const SPACE T* p,                      \
      ulong stride = 8,                      \
      vec<ulong, 2> origin = 0,              \
      bool transpose = false);               \
  template <class T>                         \
  void simdgroup_store(                      \
      msl_simd_matrix<T, 8, 8> m,            \
      SPACE T* p,                            \
      ulong stride = 8,                      \
      vec<ulong, 2> origin = 0,              \
      bool transpose = false);
MSL_MATRIX_MEMORY(__global)
MSL_MATRIX_MEMORY(__local)
#undef MSL_MATRIX_MEMORY
template <class TD, class TA, class TB, class TC>
void simdgroup_multiply_accumulate(
    __private msl_simd_matrix<TD, 8, 8>& d,
    msl_simd_matrix<TA, 8, 8> a,
    msl_simd_matrix<TB, 8, 8> b,
    msl_simd_matrix<TC, 8, 8> c);
template <class TD, class TA, class TB>
void simdgroup_multiply(
    __private msl_simd_matrix<TD, 8, 8>& d,
    msl_simd_matrix<TA, 8, 8> a,
    msl_simd_matrix<TB, 8, 8> b);
}  // namespace metal

#endif
