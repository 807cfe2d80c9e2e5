// AVX2 matvec: eight weight rows together, each with its own lane of the float accumulator.
//
// The rows are dotted one after the other into eight partial integer sums; a transposing reduction
// per block then gives one register of eight row sums, so the float part is lane-wise and in the
// canonical order.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs into 16 bits, where they must fit.
// Signed weights go in as |w| with their sign moved to x: 2 * 128 * 127 < 2^15, so even a weight of
// -128 is exact.
#pragma once

#include "backend/cpu/avx2_rows.h"
#include "backend/cpu/kernels.h"

namespace grebe::cpu::avx2 {

// The bytes of the next group of rows, in the order of memory: eight rows are more streams than the
// hardware follows well.
template <int kBytes>
void prefetch_next(const Rows8& rows, int64_t b) {
  const char* ahead = reinterpret_cast<const char*>(rows.p + 8 * rows.stride + b * kBytes);
#pragma GCC unroll 32
  for (int i = 0; i < kBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
}
template <int kBytes>
void prefetch_next(const ShortRows&, int64_t) {}

inline void matvec_q8_0(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  const __m256i one = _mm256_set1_epi16(1);
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, int lanes) {
    for (int64_t t = 0; t < n; t++) {
      __m256 acc = _mm256_setzero_ps();
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int64_t offset = b * 34;
        if (t == 0) prefetch_next<8 * 34>(rows, b);
        const __m256i a = load256(x[t].q + 32 * b);
        __m256i s[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
          const __m256i v = load256(rows[r] + offset + 2);
          s[r] = _mm256_madd_epi16(
              _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(a, v)), one);
        }
        const __m256 d = _mm256_mul_ps(load_f16_column(rows, offset), _mm256_set1_ps(x[t].d[b]));
        acc = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(add_across(s)), acc);
      }
      store_lanes(y + t * y_stride + first, acc, lanes);
    }
  });
}

// A 256-weight type is a struct with: dot, eight partial sums of one row times its scales; where d
// lies; and with minima, the eight partial sums of their product with the sums of x. One that needs
// long preparation does it for all eight rows first, so that the rows overlap.

// Sixteen 16-bit scales to both 128-bit lanes of two registers of eight.
inline void split_scales(__m256i scales, __m256i half[2]) {
  half[0] = _mm256_permute4x64_epi64(scales, 0x44);
  half[1] = _mm256_permute4x64_epi64(scales, 0xee);
}
// Of those eight, scale 2 j to the lower lane and 2 j + 1 to the upper.
inline __m256i spread_pair(__m256i half, int j) {
  static constexpr Bytes32 kFirst = make_bytes([](int i) { return i / 16 * 2 + i % 2; });
  return _mm256_shuffle_epi8(
      half, _mm256_add_epi8(kFirst, _mm256_set1_epi8(static_cast<char>(4 * j))));
}

struct DotIQ2_XXS {
  static constexpr int kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 0.125f;

  Words8 signs, scales;  // of groups 0 1 4 5 2 3 6 7

  void prepare(const uint8_t* block) {
    const __m256 a = _mm256_castsi256_ps(load256(block + 2)),
                 b = _mm256_castsi256_ps(load256(block + 34));
    const __m256i bits = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    signs.set(sign_bytes(bits));
    scales.set(iq_scale(bits));
  }

  static __m256i magnitudes(const uint8_t* index) {
    const uint64_t* const grid = kBytesIQ2_XXS.data();
    return join4(grid[index[0]], grid[index[1]], grid[index[2]], grid[index[3]]);
  }

  __m256i dot(const uint8_t* block, const int8_t* x, const int16_t*) const {
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      const int i = g % 2 + g / 4 * 2 + g / 2 % 2 * 4;
      const __m256i xs = negate_where(load256(x + 32 * g), sign_mask(signs[i]));
      const __m256i p = _mm256_maddubs_epi16(magnitudes(block + 2 + 8 * g), xs);
      sum = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(p, broadcast32(scales[i]))));
    }
    return sum;
  }
};

struct DotQ2_K {
  static constexpr int kBlockBytes = sizeof(BlockQ2_K);
  static constexpr bool kMinima = true;
  static constexpr int kScaleOffset = offsetof(BlockQ2_K, d);
  static constexpr float kScaleFactor = 1.f;

  static __m256i dot(const uint8_t* block, const int8_t* x, const int16_t*) {
    __m256i scales[2];
    split_scales(_mm256_cvtepu8_epi16(_mm_and_si128(load128(block), _mm_set1_epi8(15))), scales);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256i raw = load256(block + offsetof(BlockQ2_K, q) + 32 * half);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const __m256i p =
            _mm256_maddubs_epi16(bit_pair(raw, 2 * j), load256(x + 128 * half + 32 * j));
        sum = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(p, spread_pair(scales[half], j))));
      }
    }
    return sum;
  }

  static __m256i minima(const uint8_t* block, const int16_t* sums) {
    const __m128i m = _mm_and_si128(_mm_srli_epi16(load128(block), 4), _mm_set1_epi8(15));
    return _mm256_madd_epi16(_mm256_cvtepu8_epi16(m), load256(sums));
  }
};

template <class Dot>
void matvec_super(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  Dot dots[8];
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, int lanes) {
    for (int64_t t = 0; t < n; t++) {
      __m256 acc = _mm256_setzero_ps();
      for (int64_t b = 0; b < n_in / 256; b++) {
        const int64_t offset = b * Dot::kBlockBytes;
        if (t == 0) prefetch_next<8 * Dot::kBlockBytes>(rows, b);
        const int8_t* const q = x[t].q + 256 * b;
        const int16_t* const sums16 = x[t].sums + 16 * b;
        __m256i sums[8];
        if constexpr (requires { dots[0].prepare(w); }) {
          for (int r = 0; r < 8; r++) dots[r].prepare(rows[r] + offset);
        }
        for (int r = 0; r < 8; r++) sums[r] = dots[r].dot(rows[r] + offset, q, sums16);
        const __m256 d_x = _mm256_set1_ps(x[t].d[b]);
        __m256 d = load_f16_column(rows, offset + Dot::kScaleOffset);
        if constexpr (Dot::kScaleFactor != 1.f)
          d = _mm256_mul_ps(d, _mm256_set1_ps(Dot::kScaleFactor));
        acc = _mm256_fmadd_ps(_mm256_mul_ps(d, d_x), _mm256_cvtepi32_ps(add_across(sums)), acc);
        if constexpr (Dot::kMinima) {
          const __m256 dmin = load_f16_column(rows, offset + Dot::kScaleOffset + 2);
#pragma GCC unroll 8
          for (int r = 0; r < 8; r++) sums[r] = Dot::minima(rows[r] + offset, sums16);
          acc =
              _mm256_fnmadd_ps(_mm256_mul_ps(dmin, d_x), _mm256_cvtepi32_ps(add_across(sums)), acc);
        }
      }
      store_lanes(y + t * y_stride + first, acc, lanes);
    }
  });
}

}  // namespace grebe::cpu::avx2
