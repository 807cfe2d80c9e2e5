// AVX-512 matvec: 16 weight rows together, each with its own lane of the float accumulator.
//
// The rows are dotted one after the other into 16 partial integer sums; a transposing reduction per block then gives one
// register of 16 row sums, so the float part is lane-wise and in the canonical order.
#pragma once

#include "backend/cpu/avx512_rows.h"
#include "backend/cpu/kernels.h"
#include "quant/dequant.h"

namespace grebe::cpu::avx512 {

inline void matvec_q8_0(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, const ActRow* x, int64_t n, float* y,
                        int64_t y_stride) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, __mmask16 mask) {
    for (int64_t t = 0; t < n; t++) {
      __m512 acc = _mm512_setzero_ps();
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int64_t offset = b * 34;
        // Next group's bytes, in the order of memory: this group's rows are 16 streams, too many for the hardware.
        if (t == 0) {
          const char* ahead = reinterpret_cast<const char*>(rows.p + 16 * rows.stride + b * 544);
#pragma GCC unroll 9
          for (int i = 0; i < 9; i++) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
        }
        const __m512i a = _mm512_broadcast_i64x4(load256(reinterpret_cast<const uint8_t*>(x[t].q) + 32 * b));
        __m512i s[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {  // lower half: rows 0-3 and 8-11, upper half: four rows on
          const int r = i + (i & 4);
          const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(load256(rows[r] + offset + 2)),
                                               load256(rows[r + 4] + offset + 2), 1);
          s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_xor_si512(v, flip), a);
        }
        const __m512i u = add_within_lanes(s[0], s[1], s[2], s[3]), v = add_within_lanes(s[4], s[5], s[6], s[7]);
        const int bias = -128 * (x[t].sums[2 * b] + x[t].sums[2 * b + 1]);
        const __m512i isum = _mm512_add_epi32(
            _mm512_add_epi32(_mm512_shuffle_i64x2(u, v, 0x88), _mm512_shuffle_i64x2(u, v, 0xdd)), _mm512_set1_epi32(bias));
        const __m512 d = _mm512_mul_ps(load_f16_column(rows, offset), _mm512_set1_ps(x[t].d[b]));
        acc = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(isum), acc);
      }
      _mm512_mask_storeu_ps(y + t * y_stride + first, mask, acc);
    }
  });
}

// One 256-weight block type: x arranged to suit the block, the dot of one row, the scales of 16 rows.
struct DotIQ2_XXS {
  static constexpr int kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 0.125f;

  // The 64 bytes of groups are eight qwords, one per 32 weights: four grid indices, then signs and scale. Everything stays in
  // that arrangement: register j holds the j-th grid entry of each group, so x is permuted alike and the scale of a group
  // multiplies its lanes once at the end.
  __m512i x[4];
  __m512i grid[8];  // 32 entries of two-bit ranks each
  __m512i values, widen, rank_shift[4], sign_shift, sign_bit[4], low7, bit7, one;

  DotIQ2_XXS() {
    for (int i = 0; i < 8; i++) grid[i] = _mm512_load_si512(kGridIQ2_XXS + 32 * i);
    values = _mm512_set1_epi32(kGridValues2[0] | kGridValues2[1] << 8 | kGridValues2[2] << 16);
    alignas(64) uint8_t t[64];
    for (int i = 0; i < 64; i++) t[i] = i % 2 ? 0x80 : static_cast<uint8_t>(i % 16 / 8 * 8 + i % 8 / 2);
    widen = _mm512_load_si512(t);
    for (int j = 0; j < 4; j++) {
      for (int i = 0; i < 64; i++) t[i] = static_cast<uint8_t>(16 * j + 2 * (i % 8));
      rank_shift[j] = _mm512_load_si512(t);
      for (int i = 0; i < 64; i++) t[i] = static_cast<uint8_t>(8 * j + i % 8);
      sign_bit[j] = _mm512_load_si512(t);
    }
    for (int i = 0; i < 64; i++) t[i] = static_cast<uint8_t>(32 + 7 * (i % 4));
    sign_shift = _mm512_load_si512(t);
    low7 = _mm512_set1_epi8(0x7f);
    bit7 = _mm512_set1_epi8(static_cast<char>(0x80));
    one = _mm512_set1_epi32(1);
  }

  void load_x(const int8_t* q) {
    const __m512i v0 = _mm512_loadu_si512(q), v1 = _mm512_loadu_si512(q + 64);
    const __m512i v2 = _mm512_loadu_si512(q + 128), v3 = _mm512_loadu_si512(q + 192);
    for (int j = 0; j < 4; j++) {  // qwords j, j+4, j+8, ... of the 32
      const __m512i pick = _mm512_setr_epi64(j, j + 4, j + 8, j + 12, 0, 0, 0, 0);
      const __m512i lo = _mm512_permutex2var_epi64(v0, pick, v1), hi = _mm512_permutex2var_epi64(v2, pick, v3);
      x[j] = _mm512_inserti64x4(lo, _mm512_castsi512_si256(hi), 1);
    }
  }

  // Four 7-bit codes in each qword, completed to even parity, in its low bytes.
  __m512i sign_bytes(__m512i bits) const {
    const __m512i codes = _mm512_and_si512(_mm512_multishift_epi64_epi8(sign_shift, bits), low7);
    const __m512i parity = _mm512_slli_epi16(_mm512_popcnt_epi8(codes), 7);
    return _mm512_ternarylogic_epi32(codes, parity, bit7, 0xf8);  // codes | parity & bit7
  }
  __m512i signed_x(int j, __m512i signs) const {
    const __mmask64 negative = _mm512_bitshuffle_epi64_mask(signs, sign_bit[j]);
    return _mm512_mask_sub_epi8(x[j], negative, _mm512_setzero_si512(), x[j]);
  }

  __m512i dot(const uint8_t* block) const {
    const __m512i raw = _mm512_loadu_si512(block + 2);
    const __m512i ranks = lookup256(grid, _mm512_shuffle_epi8(raw, widen));
    const __m512i signs = sign_bytes(raw);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i magnitude = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(rank_shift[j], ranks), values);
      sum = _mm512_dpbusd_epi32(sum, magnitude, signed_x(j, signs));
    }
    // 2s + 1 from the top 4 bits, for both halves of the qword.
    const __m512i scale = _mm512_or_si512(_mm512_srli_epi32(_mm512_shuffle_epi32(raw, _MM_PERM_DDBB), 27), one);
    return _mm512_mullo_epi32(sum, scale);
  }
};

struct DotQ2_K {
  static constexpr int kBlockBytes = sizeof(BlockQ2_K);
  static constexpr bool kMinima = true;
  static constexpr int kScaleOffset = offsetof(BlockQ2_K, d);
  static constexpr float kScaleFactor = 1.f;

  __m512i x[4];          // register j: weights 32 j + (0..31) of both halves, the bit pairs 2 j of q
  __m512i spread[4];     // the scale byte of each lane's group into its low byte
  __m512i low2, low4;

  DotQ2_K() {
    alignas(64) uint8_t t[64];
    for (int j = 0; j < 4; j++) {
      for (int i = 0; i < 64; i++) t[i] = i % 4 ? 0x80 : static_cast<uint8_t>(i / 32 * 8 + 2 * j + i / 16 % 2);
      spread[j] = _mm512_load_si512(t);
    }
    low2 = _mm512_set1_epi8(3);
    low4 = _mm512_set1_epi8(15);
  }

  void load_x(const int8_t* q) {
    for (int j = 0; j < 4; j++) {
      const uint8_t* p = reinterpret_cast<const uint8_t*>(q) + 32 * j;
      x[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(p + 128), 1);
    }
  }

  __m512i dot(const uint8_t* block) const {
    const __m512i raw = _mm512_loadu_si512(block + offsetof(BlockQ2_K, q));
    const __m512i scales = _mm512_and_si512(_mm512_broadcast_i32x4(load128(block)), low4);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i q = _mm512_and_si512(_mm512_srli_epi16(raw, 2 * j), low2);
      // At most 4 * 3 * 127 in magnitude: the low 16 bits are the value, so a 16-bit product with (scale, 0) is exact.
      const __m512i p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x[j]);
      sum = _mm512_dpwssd_epi32(sum, p, _mm512_shuffle_epi8(scales, spread[j]));
    }
    return sum;
  }

  // Lane r: sum over groups of min * sum of x.
  template <class Rows>
  __m512i minima(Rows rows, int64_t offset, const int16_t* sums16) const {
    const __m512i pair_lo = _mm512_set1_epi32(static_cast<int>(0x80018000)), pair_hi = _mm512_set1_epi32(static_cast<int>(0x80038002));
    const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    __m512i col[4];
    load_columns4(rows, offset, col);
    __m512i msum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const __m512i m = _mm512_and_si512(_mm512_srli_epi16(col[c], 4), low4);
      int32_t lo, hi;
      std::memcpy(&lo, sums16 + 4 * c, 4);
      std::memcpy(&hi, sums16 + 4 * c + 2, 4);
      msum = _mm512_dpwssd_epi32(msum, _mm512_shuffle_epi8(m, _mm512_or_si512(pair_lo, lanes)), _mm512_set1_epi32(lo));
      msum = _mm512_dpwssd_epi32(msum, _mm512_shuffle_epi8(m, _mm512_or_si512(pair_hi, lanes)), _mm512_set1_epi32(hi));
    }
    return msum;
  }
};

template <class Dot>
void matvec_super(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, const ActRow* x, int64_t n, float* y,
                  int64_t y_stride) {
  Dot dot;
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, __mmask16 mask) {
    for (int64_t t = 0; t < n; t++) {
      __m512 acc = _mm512_setzero_ps();
      for (int64_t b = 0; b < n_in / 256; b++) {
        const int64_t offset = b * Dot::kBlockBytes;
        if (t == 0) {
          const char* ahead = reinterpret_cast<const char*>(rows.p + 16 * rows.stride + b * 16 * Dot::kBlockBytes);
          for (int i = 0; i < Dot::kBlockBytes / 4; i++) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
        }
        if constexpr (requires { dot.load_x(x[t].q, x[t].sums); }) {
          dot.load_x(x[t].q + 256 * b, x[t].sums + 16 * b);
        } else {
          dot.load_x(x[t].q + 256 * b);
        }
        __m512i sums[16];
        for (int r = 0; r < 16; r++) sums[r] = dot.dot(rows[r] + offset);
        const __m512 d_x = _mm512_set1_ps(x[t].d[b]);
        __m512 d = load_f16_column(rows, offset + Dot::kScaleOffset);
        if constexpr (Dot::kScaleFactor != 1.f) d = _mm512_mul_ps(d, _mm512_set1_ps(Dot::kScaleFactor));
        acc = _mm512_fmadd_ps(_mm512_mul_ps(d, d_x), _mm512_cvtepi32_ps(add_across(sums)), acc);
        if constexpr (Dot::kMinima) {
          const __m512 dmin = load_f16_column(rows, offset + Dot::kScaleOffset + 2);
          const __m512i msum = dot.minima(rows, offset, x[t].sums + 16 * b);
          acc = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, d_x), _mm512_cvtepi32_ps(msum), acc);
        }
      }
      _mm512_mask_storeu_ps(y + t * y_stride + first, mask, acc);
    }
  });
}

}  // namespace grebe::cpu::avx512
