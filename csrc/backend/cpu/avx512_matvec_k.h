// AVX-512 matvec of the remaining types; see avx512_matvec.h for the scheme.
//
// The 16-bit trick of DotQ2_K serves Q4_K, Q5_K, Q6_K and Q3_K too: a lane of vpdpbusd is at most 4
// * 63 * 127 < 2^15, so one vpdpwssd with (scale, 0) multiplies and adds. Offsets of signed codes
// are taken off with the sums of x.
#pragma once

#include "backend/cpu/avx512_matvec.h"
#include "backend/cpu/avx512_panel_k.h"

namespace grebe::cpu::avx512 {

inline __m512i broadcast256(const void* p) {
  return _mm512_broadcast_i64x4(load256(static_cast<const uint8_t*>(p)));
}

// Q4_K and Q5_K: registers hold groups (0, 2), (1, 3), (4, 6), (5, 7) of 32 weights.
template <bool kFifthBit>
struct DotK4 {
  using Block = std::conditional_t<kFifthBit, BlockQ5_K, BlockQ4_K>;
  static constexpr int kBlockBytes = sizeof(Block);
  static constexpr bool kMinima = true;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 1.f;

  __m512i x[4];

  static constexpr int group(int j) { return j / 2 * 4 + j % 2; }
  // The scale byte of each lane's group into its low byte; the bit of qh for its weights.
  static __m512i spread(int j) {
    static constexpr Bytes64 kFirst = make_bytes([](int i) { return i % 4 ? 0x80 : i / 32 * 2; });
    return _mm512_add_epi8(kFirst, _mm512_set1_epi32(group(j)));
  }
  static __m512i fifth(int j) {
    static constexpr Bytes64 kFirst = make_bytes([](int i) { return 1 << (i / 32 * 2); });
    return _mm512_slli_epi16(kFirst, static_cast<unsigned>(group(j)));
  }

  void load_x(const int8_t* q) {
    for (int j = 0; j < 4; j++) {
      const uint8_t* p = reinterpret_cast<const uint8_t*>(q) + 32 * group(j);
      x[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(p + 64), 1);
    }
  }

  __m512i dot(const uint8_t* block) const {
    uint32_t s[3];
    std::memcpy(s, block + offsetof(Block, scales), 12);
    const uint32_t lo = s[0] & 0x3f3f3f3f, hi = (s[2] & 0x0f0f0f0f) | (s[0] >> 2 & 0x30303030);
    const __m512i scales =
        _mm512_set1_epi64(static_cast<int64_t>(static_cast<uint64_t>(hi) << 32 | lo));
    __m512i high = _mm512_setzero_si512();
    if constexpr (kFifthBit) high = broadcast256(block + offsetof(BlockQ5_K, qh));
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i raw = _mm512_loadu_si512(block + offsetof(Block, q) + 64 * (j / 2));
      __m512i q = j % 2 ? high_nibbles(raw) : low_nibbles(raw);
      if constexpr (kFifthBit) {
        q = _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(high, fifth(j)), q, _mm512_set1_epi8(16));
      }
      const __m512i p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x[j]);
      sum = _mm512_dpwssd_epi32(sum, p, _mm512_shuffle_epi8(scales, spread(j)));
    }
    return sum;
  }

  template <class Rows>
  __m512i minima(Rows rows, int64_t offset, const int16_t* sums16) const {
    const HeaderK4 header(rows, offset);
    __m512i msum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      const __m512i m =
          _mm512_shuffle_epi8(header.min[g / 4], lane_shuffle(0x80008000u + 0x10001u * (g % 4)));
      int32_t pair;
      std::memcpy(&pair, sums16 + 2 * g, 4);
      msum = _mm512_dpwssd_epi32(msum, m, _mm512_set1_epi32(pair));
    }
    return msum;
  }
};

// Sixteen signed 16-bit scales, given twice: (scale, 0) of each lane's group, and the sum of scale
// * sum of x.
inline __m512i offset_term(__m256i scales, const int16_t* sums16, unsigned shift) {
  const __m256i s = load256(reinterpret_cast<const uint8_t*>(sums16));
  return _mm512_zextsi256_si512(
      _mm256_slli_epi32(_mm256_madd_epi16(scales, s), static_cast<int>(shift)));
}

struct DotQ6_K {
  static constexpr int kBlockBytes = sizeof(BlockQ6_K);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = offsetof(BlockQ6_K, d);
  static constexpr float kScaleFactor = 1.f;

  __m512i x[4];
  const int16_t* sums = nullptr;

  static __m512i group(int j) {  // of each lane, in its low half
    static constexpr Bytes64 kFirst = make_words([](int i) { return i / 8; });
    return _mm512_add_epi16(kFirst, _mm512_set1_epi16(static_cast<int16_t>(4 * j)));
  }
  static __m512i high_shift(int j) {
    static constexpr Bytes64 kFirst = make_words([](int i) { return i / 16 * 2; });
    return _mm512_add_epi16(kFirst, _mm512_set1_epi16(static_cast<int16_t>(4 * j)));
  }

  void load_x(const int8_t* q, const int16_t* sums16) {
    for (int j = 0; j < 4; j++) x[j] = _mm512_loadu_si512(q + 64 * j);
    sums = sums16;
  }

  __m512i dot(const uint8_t* block) const {
    const __m256i scales = _mm256_cvtepi8_epi16(load128(block + offsetof(BlockQ6_K, scales)));
    const __m512i scales2 = _mm512_castsi256_si512(scales);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i low = _mm512_loadu_si512(block + 64 * (j / 2));
      const __m512i high = broadcast256(block + offsetof(BlockQ6_K, qh) + 32 * (j / 2));
      const __m512i pair =
          _mm512_and_si512(_mm512_srlv_epi16(high, high_shift(j % 2)), _mm512_set1_epi8(3));
      const __m512i q =
          _mm512_or_si512(j % 2 ? high_nibbles(low) : low_nibbles(low), _mm512_slli_epi16(pair, 4));
      const __m512i p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x[j]);
      sum = _mm512_dpwssd_epi32(
          sum, p, _mm512_maskz_permutexvar_epi16(0x55555555, group(j), scales2));
    }
    return _mm512_sub_epi32(sum, offset_term(scales, sums, 5));
  }
};

struct DotQ3_K {
  static constexpr int kBlockBytes = sizeof(BlockQ3_K);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = offsetof(BlockQ3_K, d);
  static constexpr float kScaleFactor = 1.f;

  __m512i x[4];
  const int16_t* sums = nullptr;

  static __m512i group(int j) {
    static constexpr Bytes64 kFirst = make_words([](int i) { return i / 16 * 8 + i / 8 % 2; });
    return _mm512_add_epi16(kFirst, _mm512_set1_epi16(static_cast<int16_t>(2 * j)));
  }
  static __m512i high_bit(int j) {
    static constexpr Bytes64 kFirst = make_bytes([](int i) { return 1 << (i / 32 * 4); });
    return _mm512_slli_epi16(kFirst, static_cast<unsigned>(j));
  }

  void load_x(const int8_t* q, const int16_t* sums16) {
    for (int j = 0; j < 4; j++) {
      const uint8_t* p = reinterpret_cast<const uint8_t*>(q) + 32 * j;
      x[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(p + 128), 1);
    }
    sums = sums16;
  }

  __m512i dot(const uint8_t* block) const {
    const uint8_t* s = block + offsetof(BlockQ3_K, scales);
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(s));
    int32_t top;
    std::memcpy(&top, s + 8, 4);
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi64(low, _mm_srli_epi16(low, 4)), _mm_set1_epi8(15));
    const __m128i pairs = _mm_and_si128(
        _mm_srlv_epi32(_mm_set1_epi32(top), _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
    const __m128i six =
        _mm_sub_epi8(_mm_or_si128(nibbles, _mm_slli_epi16(pairs, 4)), _mm_set1_epi8(32));
    const __m256i scales = _mm256_cvtepi8_epi16(six);
    const __m512i scales2 = _mm512_castsi256_si512(scales);
    const __m512i raw = _mm512_loadu_si512(block + offsetof(BlockQ3_K, q)),
                  mask = broadcast256(block);
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      __m512i q = bit_pair(raw, 2 * j);
      q = _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(mask, high_bit(j)), q, _mm512_set1_epi8(4));
      const __m512i p = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, x[j]);
      sum = _mm512_dpwssd_epi32(
          sum, p, _mm512_maskz_permutexvar_epi16(0x55555555, group(j), scales2));
    }
    return _mm512_sub_epi32(sum, offset_term(scales, sums, 2));
  }
};

// The other grid types: a qword per group of 32 weights, register j has the weights 8 j .. 8 j + 7
// of each. x is permuted alike, and a group's scale multiplies its lanes once at the end.
struct DotGrid {
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = 0;
  __m512i x[4];

  void load_x(const int8_t* q) {
    const __m512i v0 = _mm512_loadu_si512(q), v1 = _mm512_loadu_si512(q + 64);
    const __m512i v2 = _mm512_loadu_si512(q + 128), v3 = _mm512_loadu_si512(q + 192);
    for (int j = 0; j < 4; j++) {  // qwords j, j+4, j+8, ... of the 32
      const __m512i pick = _mm512_setr_epi64(j, j + 4, j + 8, j + 12, 0, 0, 0, 0);
      const __m512i lo = _mm512_permutex2var_epi64(v0, pick, v1),
                    hi = _mm512_permutex2var_epi64(v2, pick, v3);
      x[j] = _mm512_inserti64x4(lo, _mm512_castsi512_si256(hi), 1);
    }
  }

  // x with the signs in byte j of each qword.
  __m512i signed_x(int j, __m512i signs) const {
    const __m512i bit = _mm512_add_epi8(
        _mm512_set1_epi64(0x0706050403020100), _mm512_set1_epi8(static_cast<char>(8 * j)));
    const __mmask64 negative = _mm512_bitshuffle_epi64_mask(signs, bit);
    return _mm512_mask_sub_epi8(x[j], negative, _mm512_setzero_si512(), x[j]);
  }
};

struct DotIQ3_XXS : DotGrid {
  static constexpr int kBlockBytes = sizeof(BlockIQ3_XXS);
  static constexpr float kScaleFactor = 0.25f;

  // Index bytes 0-3, or 4-7, of each qword to 16 bits; their entries 2 j and 2 j + 1 to eight
  // bytes.
  static constexpr Bytes64 kWiden[2] = {
      make_bytes([](int i) { return i % 2 ? 0x80 : i % 16 / 8 * 8 + i % 8 / 2; }),
      make_bytes([](int i) { return i % 2 ? 0x80 : i % 16 / 8 * 8 + i % 8 / 2 + 4; })};
  static constexpr Bytes64 kRankShift[2] = {
      make_bytes([](int i) { return i % 8 / 4 * 16 + 3 * (i % 4); }),
      make_bytes([](int i) { return i % 8 / 4 * 16 + 3 * (i % 4) + 32; })};

  __m512i dot(const uint8_t* block) const {
    const __m512i values = _mm512_set1_epi64(kGridValues3Word);
    const __m512i raw = _mm512_loadu_si512(block + offsetof(BlockIQ3_XXS, q));
    const __m512i bits =
        _mm512_cvtepu32_epi64(load256(block + offsetof(BlockIQ3_XXS, signs_scales)));
    const __m512i signs = sign_bytes(bits);
    const __m512i ranks[2] = {
        lookup256(kGridIQ3_XXS, _mm512_shuffle_epi8(raw, kWiden[0])),
        lookup256(kGridIQ3_XXS, _mm512_shuffle_epi8(raw, kWiden[1]))};
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i magnitude = _mm512_permutexvar_epi8(
          _mm512_multishift_epi64_epi8(kRankShift[j % 2], ranks[j / 2]), values);
      sum = _mm512_dpbusd_epi32(sum, magnitude, signed_x(j, signs));
    }
    const __m512i scale = _mm512_or_si512(
        _mm512_srli_epi32(_mm512_shuffle_epi32(bits, _MM_PERM_CCAA), 27), _mm512_set1_epi32(1));
    return _mm512_mullo_epi32(sum, scale);
  }
};

// Entry j of each qword, eight 2-bit ranks, to eight bytes with junk above.
inline __m512i entry_shift(int j) {
  return _mm512_add_epi8(
      _mm512_set1_epi64(0x0e0c0a0806040200), _mm512_set1_epi8(static_cast<char>(16 * j)));
}

struct DotIQ2_S : DotGrid {
  static constexpr int kBlockBytes = sizeof(BlockIQ2_S);
  static constexpr float kScaleFactor = 0.125f;

  __m512i dot(const uint8_t* block) const {
    const __m512i values = grid2_values(), one = _mm512_set1_epi32(1);
    const __m512i signs = _mm512_cvtepu32_epi64(load256(block + offsetof(BlockIQ2_S, signs)));
    const __m512i twice =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m256i half[2];
    for (int i = 0; i < 2;
         i++) {  // sixteen 10-bit indices; their high pairs lie in order in a word of qh
      int32_t qh;
      std::memcpy(&qh, block + offsetof(BlockIQ2_S, qh) + 4 * i, 4);
      const __m512i high =
          _mm512_and_si512(_mm512_srlv_epi32(_mm512_set1_epi32(qh), twice), _mm512_set1_epi32(3));
      const __m512i low = _mm512_cvtepu8_epi32(load128(block + offsetof(BlockIQ2_S, q) + 16 * i));
      const __m512i index = _mm512_or_si512(low, _mm512_slli_epi32(high, 8));
      half[i] = _mm512_cvtepi32_epi16(_mm512_i32gather_epi32(index, kGridIQ2_S_padded.v, 2));
    }
    const __m512i ranks = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i magnitude =
          _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(entry_shift(j), ranks), values);
      sum[j / 2] = _mm512_dpbusd_epi32(sum[j / 2], magnitude, signed_x(j, signs));
    }
    const __m512i s = _mm512_cvtepu8_epi64(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + offsetof(BlockIQ2_S, scales))));
    const __m512i both = _mm512_or_si512(s, _mm512_slli_epi64(s, 32));
    const __m512i low = _mm512_and_si512(both, _mm512_set1_epi32(15)),
                  high = _mm512_srli_epi32(both, 4);
    return _mm512_add_epi32(
        _mm512_mullo_epi32(sum[0], _mm512_or_si512(_mm512_slli_epi32(low, 1), one)),
        _mm512_mullo_epi32(sum[1], _mm512_or_si512(_mm512_slli_epi32(high, 1), one)));
  }
};

inline void matvec_mxfp4(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  const __m512i values = flip_sign_bit(doubled_e2m1());
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, __mmask16 mask) {
    for (int64_t t = 0; t < n; t++) {
      __m512 acc = _mm512_setzero_ps();
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int64_t offset = b * 17;
        if (t == 0) {
          const char* ahead = reinterpret_cast<const char*>(rows.p + 16 * rows.stride + b * 272);
#pragma GCC unroll 5
          for (int i = 0; i < 5; i++) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
        }
        const uint8_t* q = reinterpret_cast<const uint8_t*>(x[t].q) + 32 * b;
        const __m512i x_lo = _mm512_broadcast_i32x4(load128(q)),
                      x_hi = _mm512_broadcast_i32x4(load128(q + 16));
        __m512i s[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {  // rows i, i+4, i+8, i+12
          __m512i v = _mm512_castsi128_si512(load128(rows[i] + offset + 1));
          v = _mm512_inserti32x4(v, load128(rows[i + 4] + offset + 1), 1);
          v = _mm512_inserti32x4(v, load128(rows[i + 8] + offset + 1), 2);
          v = _mm512_inserti32x4(v, load128(rows[i + 12] + offset + 1), 3);
          s[i] = _mm512_dpbusd_epi32(
              _mm512_setzero_si512(), _mm512_shuffle_epi8(values, low_nibbles(v)), x_lo);
          s[i] = _mm512_dpbusd_epi32(s[i], _mm512_shuffle_epi8(values, high_nibbles(v)), x_hi);
        }
        const int bias = -128 * (x[t].sums[2 * b] + x[t].sums[2 * b + 1]);
        const __m512i isum =
            _mm512_add_epi32(add_within_lanes(s[0], s[1], s[2], s[3]), _mm512_set1_epi32(bias));
        const __m512 d = _mm512_mul_ps(load_e8m0_column(rows, offset), _mm512_set1_ps(x[t].d[b]));
        acc = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(isum), acc);
      }
      _mm512_mask_storeu_ps(y + t * y_stride + first, mask, acc);
    }
  });
}

}  // namespace grebe::cpu::avx512
