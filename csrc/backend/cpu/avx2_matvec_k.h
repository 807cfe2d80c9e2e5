// AVX2 matvec of the remaining types; see avx2_matvec.h for the scheme.
//
// Codes of at most 63 go in unsigned; what was added to make them so is taken off with the sums of
// x.
#pragma once

#include "backend/cpu/avx2_matvec.h"

namespace grebe::cpu::avx2 {

/// Byte pair i of a 128-bit lane to all eight pairs.
inline __m256i repeat_pair(__m256i v, int i) {
  return _mm256_shuffle_epi8(v, _mm256_set1_epi16(static_cast<int16_t>(0x0100 + 0x0202 * i)));
}

// Q4_K and Q5_K.
template <bool kFifthBit>
struct DotK4 {
  using Block = std::conditional_t<kFifthBit, BlockQ5_K, BlockQ4_K>;
  static constexpr int kBlockBytes = sizeof(Block);
  static constexpr bool kMinima = true;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 1.f;

  static __m256i dot(const uint8_t* block, const int8_t* x, const int16_t*) {
    uint32_t s[3];
    std::memcpy(s, block + offsetof(Block, scales), 12);
    const uint32_t lo = s[0] & 0x3f3f3f3f, hi = (s[2] & 0x0f0f0f0f) | (s[0] >> 2 & 0x30303030);
    const __m128i bytes =
        _mm_cvtsi64_si128(static_cast<int64_t>(static_cast<uint64_t>(hi) << 32 | lo));
    const __m256i scales = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(bytes));
    __m256i high = _mm256_setzero_si256();
    if constexpr (kFifthBit) high = load256(block + offsetof(BlockQ5_K, qh));
    const auto fifth = [&](int g) {
      const __m256i moved = g < 4 ? _mm256_slli_epi16(high, 4 - g) : _mm256_srli_epi16(high, g - 4);
      return _mm256_and_si256(moved, _mm256_set1_epi8(16));
    };
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const __m256i raw = load256(block + offsetof(Block, q) + 32 * i);
      __m256i a = low_nibbles(raw), b = high_nibbles(raw);
      if constexpr (kFifthBit) {
        a = _mm256_or_si256(a, fifth(2 * i));
        b = _mm256_or_si256(b, fifth(2 * i + 1));
      }
      const __m256i p = _mm256_maddubs_epi16(a, load256(x + 64 * i)),
                    r = _mm256_maddubs_epi16(b, load256(x + 64 * i + 32));
      sum = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(p, repeat_pair(scales, 2 * i))));
      sum = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(r, repeat_pair(scales, 2 * i + 1))));
    }
    return sum;
  }

  static __m256i minima(const uint8_t* block, const int16_t* sums) {
    uint32_t s[2];
    std::memcpy(s, block + offsetof(Block, scales) + 4, 8);
    const uint32_t lo = s[0] & 0x3f3f3f3f, hi = (s[1] >> 4 & 0x0f0f0f0f) | (s[0] >> 2 & 0x30303030);
    const __m128i bytes =
        _mm_cvtsi64_si128(static_cast<int64_t>(static_cast<uint64_t>(hi) << 32 | lo));
    return _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(bytes, bytes)), load256(sums));
  }
};

struct DotQ6_K {
  static constexpr int kBlockBytes = sizeof(BlockQ6_K);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = offsetof(BlockQ6_K, d);
  static constexpr float kScaleFactor = 1.f;

  static __m256i dot(const uint8_t* block, const int8_t* x, const int16_t* sums) {
    const __m256i scales = _mm256_cvtepi8_epi16(load128(block + offsetof(BlockQ6_K, scales)));
    __m256i s[2];
    split_scales(scales, s);
    // x times 32 and all scales, to be taken off; at most 16 * 127 * 128 * 32 in a lane's two
    // products.
    __m256i sum = _mm256_slli_epi32(_mm256_madd_epi16(scales, load256(sums)), 5);
    sum = _mm256_sub_epi32(_mm256_setzero_si256(), sum);
    const __m256i top = _mm256_set1_epi8(48);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256i high = load256(block + offsetof(BlockQ6_K, qh) + 32 * half);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const __m256i low = load256(block + 64 * half + 32 * (j % 2));
        const __m256i h =
            j < 2 ? _mm256_slli_epi16(high, 4 - 2 * j) : _mm256_srli_epi16(high, 2 * j - 4);
        const __m256i q =
            _mm256_or_si256(j < 2 ? low_nibbles(low) : high_nibbles(low), _mm256_and_si256(h, top));
        const __m256i p = _mm256_maddubs_epi16(q, load256(x + 128 * half + 32 * j));
        sum = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(p, spread_pair(s[half], j))));
      }
    }
    return sum;
  }
};

struct DotQ3_K {
  static constexpr int kBlockBytes = sizeof(BlockQ3_K);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = offsetof(BlockQ3_K, d);
  static constexpr float kScaleFactor = 1.f;

  static __m256i dot(const uint8_t* block, const int8_t* x, const int16_t* sums) {
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
    const __m256i scales = _mm256_cvtepi8_epi16(six), mask = load256(block),
                  four = _mm256_set1_epi8(4);
    __m256i halves[2];
    split_scales(scales, halves);
    __m256i sum = _mm256_slli_epi32(_mm256_madd_epi16(scales, load256(sums)), 2);
    sum = _mm256_sub_epi32(_mm256_setzero_si256(), sum);
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      const __m256i raw = load256(block + offsetof(BlockQ3_K, q) + 32 * (g / 4));
      const __m256i h = g < 2 ? _mm256_slli_epi16(mask, 2 - g) : _mm256_srli_epi16(mask, g - 2);
      const __m256i q = _mm256_or_si256(bit_pair(raw, 2 * (g % 4)), _mm256_and_si256(h, four));
      const __m256i p = _mm256_maddubs_epi16(q, load256(x + 32 * g));
      sum =
          in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(p, spread_pair(halves[g / 4], g % 4))));
    }
    return sum;
  }
};

struct DotIQ3_XXS {
  static constexpr int kBlockBytes = sizeof(BlockIQ3_XXS);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 0.25f;

  Words8 signs, scales;

  void prepare(const uint8_t* block) {
    const __m256i bits = load256(block + offsetof(BlockIQ3_XXS, signs_scales));
    signs.set(sign_bytes(bits));
    scales.set(iq_scale(bits));
  }

  __m256i dot(const uint8_t* block, const int8_t* x, const int16_t*) const {
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      const __m256i magnitude = magnitudes(block + offsetof(BlockIQ3_XXS, q) + 8 * g);
      const __m256i xs = negate_where(load256(x + 32 * g), sign_mask(signs[g]));
      sum = in_order(_mm256_add_epi32(
          sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, xs), broadcast32(scales[g]))));
    }
    return sum;
  }

  static __m256i magnitudes(const uint8_t* index) {
    const auto entry = [index](int j) { return static_cast<int>(kBytesIQ3_XXS[index[j]]); };
    return _mm256_setr_epi32(
        entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6), entry(7));
  }
};

struct DotIQ2_S {
  static constexpr int kBlockBytes = sizeof(BlockIQ2_S);
  static constexpr bool kMinima = false;
  static constexpr int kScaleOffset = 0;
  static constexpr float kScaleFactor = 0.125f;

  // 2 s + 1 of group g in the halves of its two 16s, in every word of four weights.
  static __m256i scales(const uint8_t* block) {
    const __m128i s =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + offsetof(BlockIQ2_S, scales)));
    const __m128i nibbles =
        _mm_and_si128(_mm_unpacklo_epi8(s, _mm_srli_epi16(s, 4)), _mm_set1_epi8(15));
    return _mm256_cvtepu8_epi16(_mm_or_si128(_mm_slli_epi16(nibbles, 1), _mm_set1_epi8(1)));
  }
  // Four grid indices for each group: q, and two bits more from qh.
  static void indices(const uint8_t* block, uint16_t index[32]) {
    static constexpr Bytes32 kByte = make_bytes([](int i) { return i % 2 ? 0x80 : i / 8; });
    const __m256i shift = _mm256_set1_epi64x(0x0004'0010'0040'0100), top = _mm256_set1_epi16(0x300);
    int64_t qh;
    std::memcpy(&qh, block + offsetof(BlockIQ2_S, qh), 8);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const __m256i bytes = _mm256_shuffle_epi8(
          _mm256_set1_epi64x(qh),
          _mm256_add_epi8(kByte, _mm256_set1_epi8(static_cast<char>(4 * i))));
      const __m256i low = _mm256_cvtepu8_epi16(load128(block + offsetof(BlockIQ2_S, q) + 16 * i));
      const __m256i v =
          _mm256_or_si256(low, _mm256_and_si256(_mm256_mullo_epi16(bytes, shift), top));
      _mm256_store_si256(reinterpret_cast<__m256i*>(index + 16 * i), v);
    }
  }
  static __m256i magnitudes(const uint16_t* index) {
    const uint64_t* const grid = kBytesIQ2_S.data();
    return join4(grid[index[0]], grid[index[1]], grid[index[2]], grid[index[3]]);
  }

  alignas(32) uint16_t index[32];

  void prepare(const uint8_t* block) {
    indices(block, index);
    asm("" : "+m"(index));  // as in Words8
  }

  __m256i dot(const uint8_t* block, const int8_t* x, const int16_t*) const {
    __m256i s[2];
    split_scales(scales(block), s);
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
      const __m256i xs =
          negate_where(load256(x + 32 * g), sign_mask(block + offsetof(BlockIQ2_S, signs) + 4 * g));
      const __m256i p = _mm256_maddubs_epi16(magnitudes(index + 4 * g), xs);
      sum = in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(p, spread_pair(s[g / 4], g % 4))));
    }
    return sum;
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
  constexpr int kBias = 12;  // makes the doubled values unsigned
  const __m256i values = _mm256_add_epi8(broadcast128(kDoubledE2M1), _mm256_set1_epi8(kBias)),
                one = _mm256_set1_epi16(1);
  for_row_groups(w, row_bytes, n_rows, [&](auto rows, int64_t first, int lanes) {
    for (int64_t t = 0; t < n; t++) {
      __m256 acc = _mm256_setzero_ps();
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int64_t offset = b * 17;
        if (t == 0) prefetch_next<8 * 17>(rows, b);
        const int8_t* const q = x[t].q + 32 * b;
        const __m256i x_lo = broadcast128(q), x_hi = broadcast128(q + 16);
        __m256i s[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {  // rows i and i + 4
          const __m256i v = load128x2(rows[i] + offset + 1, rows[i + 4] + offset + 1);
          const __m256i lo =
              _mm256_maddubs_epi16(_mm256_shuffle_epi8(values, low_nibbles(v)), x_lo);
          const __m256i hi =
              _mm256_maddubs_epi16(_mm256_shuffle_epi8(values, high_nibbles(v)), x_hi);
          s[i] = _mm256_madd_epi16(_mm256_add_epi16(lo, hi), one);
        }
        const int bias = -kBias * (x[t].sums[2 * b] + x[t].sums[2 * b + 1]);
        const __m256i isum =
            _mm256_add_epi32(add_within_lanes(s[0], s[1], s[2], s[3]), _mm256_set1_epi32(bias));
        const __m256 d = _mm256_mul_ps(load_e8m0_column(rows, offset), _mm256_set1_ps(x[t].d[b]));
        acc = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isum), acc);
      }
      store_lanes(y + t * y_stride + first, acc, lanes);
    }
  });
}

}  // namespace grebe::cpu::avx2
