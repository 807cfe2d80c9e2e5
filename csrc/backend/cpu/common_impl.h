// Kernels that every table compiles from the same source, on the 16-lane type of simd.h:
// quantization of x, products with float weights, SwiGLU. Included by the per-ISA translation units
// only.
#pragma once

#include <algorithm>

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd.h"

namespace grebe::cpu::GREBE_ISA {

// Largest |x| of a group as float bits: as integers NaN > inf > any finite value, so nothing is
// lost on the way.
inline uint32_t max_abs_bits(const float* x, int n) {
  uint32_t top = 0;
  for (int i = 0; i < n; i++) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7fffffff;
    top = bits > top ? bits : top;
  }
  return top;
}

// q = round(x * 127 / amax), ties to even; d = amax / 127. Groups below 2^-100 count as zero: their
// reciprocal would overflow.
inline void quantize(const float* x, int64_t n, int group, int8_t* q, float* d, int16_t* sums) {
  for (int64_t begin = 0; begin < n; begin += group) {
    const float amax = std::bit_cast<float>(max_abs_bits(x + begin, group));
    const bool finite = std::isfinite(amax);
    const float inverse = finite && amax >= 0x1p-100f ? 127.f / amax : 0.f;
    d[begin / group] = !finite         ? std::bit_cast<float>(0x7fc00000u)
                       : inverse > 0.f ? amax / 127.f
                                       : 0.f;
    const f32x16 factor = set16(inverse);
    for (int i = 0; i < group; i += 16) {
      int8_t* out = q + begin + i;
      int sum = 0;
      if (finite) {
        alignas(64) float t[16];
        store16(t, round16(load16(x + begin + i) * factor));
        for (int j = 0; j < 16; j++) {
          const int code = static_cast<int>(t[j]);
          out[j] = static_cast<int8_t>(code);
          sum += code;
        }
      } else {
        std::memset(out, 0, 16);
      }
      sums[(begin + i) / 16] = static_cast<int16_t>(sum);
    }
  }
}

// Weights of a float type, 16 at a time.
struct LoadF32 {
  static constexpr int kBytes = 4;
  static f32x16 load(const uint8_t* p) { return load16(reinterpret_cast<const float*>(p)); }
  static float one(const uint8_t* p) {
    float f;
    std::memcpy(&f, p, 4);
    return f;
  }
};
struct LoadF16 {
  static constexpr int kBytes = 2;
  static f32x16 load(const uint8_t* p) { return load16_f16(reinterpret_cast<const uint16_t*>(p)); }
  static float one(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return f16_to_f32(h);
  }
};
struct LoadBF16 {
  static constexpr int kBytes = 2;
  static f32x16 load(const uint8_t* p) {
#if defined(GREBE_ISA_AVX512)
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
#else
    alignas(64) float t[16];
    for (int i = 0; i < 16; i++) t[i] = one(p + 2 * i);
    return load16(t);
#endif
  }
  static float one(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return bf16_to_f32(h);
  }
};

// The last n_in % 16 weights, padded with zeros like x.
template <class Load>
f32x16 load_rest(const uint8_t* p, int n) {
  alignas(64) float t[16] = {};
  for (int i = 0; i < n; i++) t[i] = Load::one(p + i * Load::kBytes);
  return load16(t);
}

// reduce16() in registers where that is the same tree.
inline float reduce(f32x16 a) {
#if defined(GREBE_ISA_AVX512)
  const __m256 h8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
#else
  return reduce16(a);
#endif
}

// R weight rows times T rows of x, one 16-lane accumulator each.
template <class Load, int R, int T>
void float_tile(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_in,
    const float* x,
    int64_t x_stride,
    float* y,
    int64_t y_stride) {
  f32x16 acc[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) acc[r][t] = zero16();
  int64_t k = 0;
  for (; k + 16 <= n_in; k += 16) {
    f32x16 xs[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) xs[t] = load16(x + t * x_stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const f32x16 ws = Load::load(w + r * row_bytes + k * Load::kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) acc[r][t] = fma16(ws, xs[t], acc[r][t]);
    }
  }
  if (k < n_in) {
    const int rest = static_cast<int>(n_in - k);
    for (int r = 0; r < R; r++) {
      const f32x16 ws = load_rest<Load>(w + r * row_bytes + k * Load::kBytes, rest);
      for (int t = 0; t < T; t++)
        acc[r][t] = fma16(ws, load16_n(x + t * x_stride + k, rest), acc[r][t]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) y[t * y_stride + r] = reduce(acc[r][t]);
}

#if defined(GREBE_ISA_AVX512)
inline constexpr int kFloatRows = 4, kFloatTokens = 6;
#elif defined(GREBE_ISA_AVX2)
inline constexpr int kFloatRows = 2, kFloatTokens = 2;
#else
inline constexpr int kFloatRows = 2, kFloatTokens = 3;
#endif

template <class Load>
void multiply_float(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const float* x,
    int64_t x_stride,
    int64_t n,
    float* y,
    int64_t y_stride) {
  constexpr int R = kFloatRows, T = kFloatTokens;
  if (n == 1) {  // a stream: several rows hide the latency of the fma chain
    constexpr int S = R == 4 ? 8 : 4;
    int64_t r = 0;
    for (; r + S <= n_rows; r += S)
      float_tile<Load, S, 1>(w + r * row_bytes, row_bytes, n_in, x, x_stride, y + r, y_stride);
    for (; r < n_rows; r++)
      float_tile<Load, 1, 1>(w + r * row_bytes, row_bytes, n_in, x, x_stride, y + r, y_stride);
    return;
  }
  for (int64_t r = 0; r < n_rows;) {
    const uint8_t* rows = w + r * row_bytes;
    const bool full = r + R <= n_rows;
    int64_t t = 0;
    for (; t + T <= n; t += T) {
      if (full)
        float_tile<Load, R, T>(
            rows, row_bytes, n_in, x + t * x_stride, x_stride, y + t * y_stride + r, y_stride);
      else
        float_tile<Load, 1, T>(
            rows, row_bytes, n_in, x + t * x_stride, x_stride, y + t * y_stride + r, y_stride);
    }
    for (; t < n; t++) {
      if (full)
        float_tile<Load, R, 1>(
            rows, row_bytes, n_in, x + t * x_stride, x_stride, y + t * y_stride + r, y_stride);
      else
        float_tile<Load, 1, 1>(
            rows, row_bytes, n_in, x + t * x_stride, x_stride, y + t * y_stride + r, y_stride);
    }
    r += full ? R : 1;
  }
}

// An E4M3 code shifted into the places of an f16 is its value times 2^-8, subnormals included; only
// NaN differs.
inline void dequantize_f8(const uint8_t* codes, const uint8_t* scales, int64_t n, float* out) {
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) {
    const float scale = e8m0_to_f32(scales[k / 128]);
    alignas(32) uint16_t half[16];
    uint16_t nans = 0;
    for (int i = 0; i < 16; i++) {
      const uint16_t code = codes[k + i];
      half[i] = static_cast<uint16_t>((code & 128) << 8 | (code & 127) << 7);
      nans |= static_cast<uint16_t>((code & 127) == 127);
    }
    store16(out + k, load16_f16(half) * set16(256.f) * set16(scale));
    if (nans) [[unlikely]] {
      for (int i = 0; i < 16; i++) out[k + i] = e4m3_to_f32(codes[k + i]) * scale;
    }
  }
  for (; k < n; k++) out[k] = e4m3_to_f32(codes[k]) * e8m0_to_f32(scales[k / 128]);
}

inline f32x16 swiglu16(f32x16 g, f32x16 u, float clamp, f32x16 weight) {
  if (clamp > 0.f) {  // the second operand wins when one is NaN, so NaN goes through
    g = min16(set16(clamp), g);
    u = max16(set16(-clamp), min16(set16(clamp), u));
  }
  const f32x16 silu = g / (set16(1.f) + exp16(set16(0.f) - g));
  return silu * u * weight;
}

inline void swiglu(float* gate, const float* up, int64_t n, float clamp, float weight) {
  const f32x16 w = set16(weight);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    store16(gate + i, swiglu16(load16(gate + i), load16(up + i), clamp, w));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store16_n(gate + i, swiglu16(load16_n(gate + i, rest), load16_n(up + i, rest), clamp, w), rest);
  }
}

/// The entries of a table that are the same source everywhere.
inline void fill_common(KernelTable& t) {
  t.quantize = quantize;
  t.multiply_f32 = multiply_float<LoadF32>;
  t.multiply_f16 = multiply_float<LoadF16>;
  t.multiply_bf16 = multiply_float<LoadBF16>;
  t.dequantize_f8 = dequantize_f8;
  t.swiglu = swiglu;
}

}  // namespace grebe::cpu::GREBE_ISA
