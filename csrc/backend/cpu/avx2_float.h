// AVX2 products with F32 and F16 weights: common_impl.h's multiply_float() in tiles that suit 16
// registers.
//
// An accumulator of the canonical order is two registers. Two weight rows times three rows of x
// fill twelve; of the rest, two hold weights and one x, because the halves of 16 values are worked
// on one after the other.
#pragma once

#include "backend/cpu/avx2_rows.h"
#include "backend/cpu/common_impl.h"

namespace grebe::cpu::avx2 {

inline __m256 load_half(LoadF32, const uint8_t* p) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
}
inline __m256 load_half(LoadF16, const uint8_t* p) { return _mm256_cvtph_ps(load128(p)); }

// reduce16() of two registers.
inline float reduce_halves(__m256 a, __m256 b) {
  const __m256 h8 = _mm256_add_ps(a, b);
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}

template <class Load, int R, int T>
void half_tile(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_in,
    const float* x,
    int64_t x_stride,
    float* y,
    int64_t y_stride) {
  __m256 acc[R][T][2];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t][0] = acc[r][t][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < n_in; k += 16) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      __m256 ws[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
        ws[r] = load_half(Load{}, w + r * row_bytes + (k + 8 * h) * Load::kBytes);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        __m256 xs = _mm256_loadu_ps(x + t * x_stride + k + 8 * h);
        asm("" : "+x"(xs));  // or it would be loaded again for every row
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r][t][h] = _mm256_fmadd_ps(ws[r], xs, acc[r][t][h]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) y[t * y_stride + r] = reduce_halves(acc[r][t][0], acc[r][t][1]);
}

template <class Load>
void multiply_halves(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const float* x,
    int64_t x_stride,
    int64_t n,
    float* y,
    int64_t y_stride) {
  if (n_in % 16 != 0 || n_rows < 2) {
    return multiply_float<Load>(w, row_bytes, n_rows, n_in, x, x_stride, n, y, y_stride);
  }
  for (int64_t t = 0; t < n;) {
    const int64_t left = n - t, step = n == 1 ? 1 : left == 4 || left == 2 ? 2 : left == 1 ? 1 : 3;
    const auto pair = step == 3   ? half_tile<Load, 2, 3>
                      : step == 2 ? half_tile<Load, 2, 2>
                                  : half_tile<Load, 2, 1>;
    const float* const xs = x + t * x_stride;
    float* const ys = y + t * y_stride;
    int64_t r = 0;
    if (step == 1) {  // a stream: several rows hide the latency of the fma chain
      for (; r + 4 <= n_rows; r += 4)
        half_tile<Load, 4, 1>(w + r * row_bytes, row_bytes, n_in, xs, x_stride, ys + r, y_stride);
    }
    for (; r < n_rows; r += 2) {  // the last pair reaches back
      const int64_t first = std::min(r, n_rows - 2);
      pair(w + first * row_bytes, row_bytes, n_in, xs, x_stride, ys + first, y_stride);
    }
    t += step;
  }
}

}  // namespace grebe::cpu::avx2
