// AVX-512 matvec: 16 weight rows together, each with its own lane of the float accumulator.
//
// The rows are dotted one after the other into 16 partial integer sums; a transposing reduction per
// block then gives one register of 16 row sums, so the float part is lane-wise and in the canonical
// order.
#pragma once

#include "backend/cpu/avx512_panel.h"
#include "backend/cpu/avx512_rows.h"
#include "backend/cpu/kernels.h"
#include "quant/dequant.h"

namespace grebe::cpu::avx512 {

inline void matvec_q8_0(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, __mmask16 mask) {
    for (int64_t t = 0; t < n; t++) {
      __m512 acc = _mm512_setzero_ps();
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int64_t offset = b * 34;
        // Next group's bytes, in the order of memory: this group's rows are 16 streams, too many
        // for the hardware.
        if (t == 0) {
          const char* ahead = reinterpret_cast<const char*>(rows.p + 16 * rows.stride + b * 544);
#pragma GCC unroll 9
          for (int i = 0; i < 9; i++) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
        }
        const __m512i a =
            _mm512_broadcast_i64x4(load256(reinterpret_cast<const uint8_t*>(x[t].q) + 32 * b));
        __m512i s[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {  // lower half: rows 0-3 and 8-11, upper half: four rows on
          const int r = i + (i & 4);
          const __m512i v = _mm512_inserti64x4(
              _mm512_castsi256_si512(load256(rows[r] + offset + 2)),
              load256(rows[r + 4] + offset + 2),
              1);
          s[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_xor_si512(v, flip), a);
        }
        const __m512i u = add_within_lanes(s[0], s[1], s[2], s[3]),
                      v = add_within_lanes(s[4], s[5], s[6], s[7]);
        const int bias = -128 * (x[t].sums[2 * b] + x[t].sums[2 * b + 1]);
        const __m512i isum = _mm512_add_epi32(
            _mm512_add_epi32(_mm512_shuffle_i64x2(u, v, 0x88), _mm512_shuffle_i64x2(u, v, 0xdd)),
            _mm512_set1_epi32(bias));
        const __m512 d = _mm512_mul_ps(load_f16_column(rows, offset), _mm512_set1_ps(x[t].d[b]));
        acc = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(isum), acc);
      }
      _mm512_mask_storeu_ps(y + t * y_stride + first, mask, acc);
    }
  });
}

// A 256-weight type is a struct with: load_x, which arranges a block of x to suit the weights; dot,
// 16 partial sums of one row times its scales (or dot2, of two rows); where d lies; and with
// minima, their product with the sums of x for 16 rows.

constexpr Bytes64 rank_bits(int row, int j) {
  return make_bytes([=](int i) { return 32 * row + 8 * (2 * j + i % 8 / 4) + 2 * (i % 4); });
}
constexpr Bytes64 sign_bits(int row, int p, int j) {
  return make_bytes([=](int i) { return 32 * row + 8 * (2 * j + i % 8 / 4) + 4 * p + i % 4; });
}

// Two rows of IQ2_XXS at a time: their grid indices fill one register, so the table is read in two
// byte planes (ranks of weights 0-3 and 4-7 of an entry) with half the permutes a row. Register 2 p
// + j holds plane p of entries 2 j and 2 j + 1.
struct DotIQ2_XXS {
  static constexpr int kBlockBytes = sizeof(BlockIQ2_XXS);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 0.125f;

  // [row]: where the ranks of register j, and the signs of register 2 p + j, lie in the qword of a
  // group.
  static constexpr Bytes64 kRankShift[2][2] = {
      {rank_bits(0, 0), rank_bits(0, 1)}, {rank_bits(1, 0), rank_bits(1, 1)}};
  static constexpr Bytes64 kSignBit[2][4] = {
      {sign_bits(0, 0, 0), sign_bits(0, 0, 1), sign_bits(0, 1, 0), sign_bits(0, 1, 1)},
      {sign_bits(1, 0, 0), sign_bits(1, 0, 1), sign_bits(1, 1, 0), sign_bits(1, 1, 1)}};
  __m512i x[4];

  void load_x(const int8_t* q) {
    const __m512i v0 = _mm512_loadu_si512(q), v1 = _mm512_loadu_si512(q + 64);
    const __m512i v2 = _mm512_loadu_si512(q + 128), v3 = _mm512_loadu_si512(q + 192);
    for (int r = 0; r < 4; r++) {  // 32-bit words 4 j + p and 4 j + 2 + p of each eight
      const int a = 4 * (r % 2) + r / 2;
      const __m512i pick = _mm512_setr_epi32(
          a, a + 2, a + 8, a + 10, a + 16, a + 18, a + 24, a + 26, 0, 0, 0, 0, 0, 0, 0, 0);
      const __m512i lo = _mm512_permutex2var_epi32(v0, pick, v1),
                    hi = _mm512_permutex2var_epi32(v2, pick, v3);
      x[r] = _mm512_inserti64x4(lo, _mm512_castsi512_si256(hi), 1);
    }
  }

  void dot2(const uint8_t* block_a, const uint8_t* block_b, __m512i& sum_a, __m512i& sum_b) const {
    const __m512i a = _mm512_loadu_si512(block_a + 2), b = _mm512_loadu_si512(block_b + 2);
    const __m512i index =
        _mm512_mask_shuffle_epi32(a, 0xaaaa, b, _MM_PERM_CCAA);  // low words a, high words b
    const __m512i bits = _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB);
    const __m512i signs = sign_bytes(bits);
    const __mmask64 upper = _mm512_movepi8_mask(index);
    sum_a = sum_b = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {
      const __m512i ranks = lookup256_plane(kPlanesIQ2_XXS[p], index, upper);
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++) {
        sum_a = add(sum_a, ranks, signs, 0, p, j);
        sum_b = add(sum_b, ranks, signs, 1, p, j);
      }
    }
    const __m512i scale = _mm512_or_si512(_mm512_srli_epi32(bits, 27), _mm512_set1_epi32(1));
    sum_a = _mm512_mullo_epi32(sum_a, _mm512_shuffle_epi32(scale, _MM_PERM_CCAA));
    sum_b = _mm512_mullo_epi32(sum_b, _mm512_shuffle_epi32(scale, _MM_PERM_DDBB));
  }

  __m512i add(__m512i sum, __m512i ranks, __m512i signs, int row, int p, int j) const {
    const __m512i magnitude = _mm512_permutexvar_epi8(
        _mm512_multishift_epi64_epi8(kRankShift[row][j], ranks), grid2_values());
    const __mmask64 negative = _mm512_bitshuffle_epi64_mask(signs, kSignBit[row][2 * p + j]);
    const __m512i xs = x[2 * p + j];
    return _mm512_dpbusd_epi32(
        sum, magnitude, _mm512_mask_sub_epi8(xs, negative, _mm512_setzero_si512(), xs));
  }
};

struct DotQ2_K {
  static constexpr int kBlockBytes = sizeof(BlockQ2_K);
  static constexpr bool kMinima = true;
  static constexpr int kScaleOffset = offsetof(BlockQ2_K, d);
  static constexpr float kScaleFactor = 1.f;

  __m512i x[4];  // register j: weights 32 j + (0..31) of both halves, the bit pairs 2 j of q

  // The scale byte of each lane's group into its low byte.
  static __m512i spread(int j) {
    static constexpr Bytes64 kFirst =
        make_bytes([](int i) { return i % 4 ? 0x80 : i / 32 * 8 + i / 16 % 2; });
    return _mm512_add_epi8(kFirst, _mm512_set1_epi32(2 * j));
  }

  void load_x(const int8_t* q) {
    for (int j = 0; j < 4; j++) {
      const uint8_t* p = reinterpret_cast<const uint8_t*>(q) + 32 * j;
      x[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(p + 128), 1);
    }
  }

  __m512i dot(const uint8_t* block) const {
    const __m512i raw = _mm512_loadu_si512(block + offsetof(BlockQ2_K, q));
    const __m512i scales =
        _mm512_and_si512(_mm512_broadcast_i32x4(load128(block)), _mm512_set1_epi8(15));
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i q = _mm512_and_si512(_mm512_srli_epi16(raw, 2 * j), _mm512_set1_epi8(3));
      // At most 4 * 3 * 127 in magnitude: the low 16 bits are the value, so a 16-bit product with
      // (scale, 0) is exact.
      const __m512i p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x[j]);
      sum = _mm512_dpwssd_epi32(sum, p, _mm512_shuffle_epi8(scales, spread(j)));
    }
    return sum;
  }

  // Lane r: sum over groups of min * sum of x.
  template <class Rows>
  __m512i minima(Rows rows, int64_t offset, const int16_t* sums16) const {
    const __m512i pair_lo = _mm512_set1_epi32(static_cast<int>(0x80018000)),
                  pair_hi = _mm512_set1_epi32(static_cast<int>(0x80038002));
    const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    __m512i col[4];
    load_columns4(rows, offset, col);
    __m512i msum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const __m512i m = _mm512_and_si512(_mm512_srli_epi16(col[c], 4), _mm512_set1_epi8(15));
      int32_t lo, hi;
      std::memcpy(&lo, sums16 + 4 * c, 4);
      std::memcpy(&hi, sums16 + 4 * c + 2, 4);
      msum = _mm512_dpwssd_epi32(
          msum, _mm512_shuffle_epi8(m, _mm512_or_si512(pair_lo, lanes)), _mm512_set1_epi32(lo));
      msum = _mm512_dpwssd_epi32(
          msum, _mm512_shuffle_epi8(m, _mm512_or_si512(pair_hi, lanes)), _mm512_set1_epi32(hi));
    }
    return msum;
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
  Dot dot;
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, __mmask16 mask) {
    for (int64_t t = 0; t < n; t++) {
      __m512 acc = _mm512_setzero_ps();
      for (int64_t b = 0; b < n_in / 256; b++) {
        const int64_t offset = b * Dot::kBlockBytes;
        if (t == 0) {
          const char* ahead =
              reinterpret_cast<const char*>(rows.p + 16 * rows.stride + b * 16 * Dot::kBlockBytes);
          for (int i = 0; i < Dot::kBlockBytes / 4; i++) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
        }
        if constexpr (requires { dot.load_x(x[t].q, x[t].sums); }) {
          dot.load_x(x[t].q + 256 * b, x[t].sums + 16 * b);
        } else {
          dot.load_x(x[t].q + 256 * b);
        }
        __m512i sums[16];
        if constexpr (requires { dot.dot2(w, w, sums[0], sums[1]); }) {
          for (int r = 0; r < 16; r += 2)
            dot.dot2(rows[r] + offset, rows[r + 1] + offset, sums[r], sums[r + 1]);
        } else {
          for (int r = 0; r < 16; r++) sums[r] = dot.dot(rows[r] + offset);
        }
        const __m512 d_x = _mm512_set1_ps(x[t].d[b]);
        __m512 d = load_f16_column(rows, offset + Dot::kScaleOffset);
        if constexpr (Dot::kScaleFactor != 1.f)
          d = _mm512_mul_ps(d, _mm512_set1_ps(Dot::kScaleFactor));
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
