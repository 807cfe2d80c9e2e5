// AVX2: one block of each quantized type to bytes in natural order.
//
// vpmaddubsw adds two products in 16 bits with saturation, so unsigned codes must stay below 130: signed codes of the
// 256-weight types are stored plus 64. Q8_0 and MXFP4 stay signed and go through vpsignb.
#pragma once

#include "backend/cpu/grid_tables.h"
#include "backend/cpu/simd.h"

namespace grebe::cpu::avx2 {

inline constexpr int kCodeOffset = 64;

/// 256 weights: eight registers of codes, then i16 scales and mins per 16 weights.
struct Codes {
  __m256i u[8];
  __m256i scales, mins;  // mins: for signed types kCodeOffset * scale
};

inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
inline __m256i bit_pair(__m256i v, int b) { return _mm256_and_si256(_mm256_srli_epi16(v, b), _mm256_set1_epi8(3)); }
/// Bit b of each byte, moved to bit `to`.
inline __m256i one_bit(__m256i v, int b, int to) {
  return _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(v, b), _mm256_set1_epi8(1)), to);
}

inline void set_signed(Codes& c, __m256i scales) {
  c.scales = scales;
  c.mins = _mm256_slli_epi16(scales, 6);
}

struct DecodeQ2_K {
  using Block = BlockQ2_K;
  static constexpr bool kMinima = true;
  static void codes(const uint8_t* p, Codes& c) {
    const __m128i s = load128(p), nibble = _mm_set1_epi8(15);
    c.scales = _mm256_cvtepu8_epi16(_mm_and_si128(s, nibble));
    c.mins = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(s, 4), nibble));
    for (int h = 0; h < 2; h++) {
      const __m256i raw = load256(p + offsetof(BlockQ2_K, q) + 32 * h);
      for (int j = 0; j < 4; j++) c.u[4 * h + j] = bit_pair(raw, 2 * j);
    }
  }
};

struct DecodeQ3_K {
  using Block = BlockQ3_K;
  static constexpr bool kMinima = false;
  static void codes(const uint8_t* p, Codes& c) {
    const uint8_t* s = p + offsetof(BlockQ3_K, scales);
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(s));
    const __m128i nibbles = _mm_and_si128(_mm_unpacklo_epi64(low, _mm_srli_epi16(low, 4)), _mm_set1_epi8(15));
    const __m128i top = _mm_set1_epi32(static_cast<int>(load_u32(s + 8)));
    const __m128i pairs = _mm_and_si128(_mm_srlv_epi32(top, _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
    const __m128i six = _mm_or_si128(nibbles, _mm_slli_epi16(pairs, 4));
    set_signed(c, _mm256_cvtepi8_epi16(_mm_sub_epi8(six, _mm_set1_epi8(32))));
    const __m256i mask = load256(p), bias = _mm256_set1_epi8(kCodeOffset - 4);
    for (int h = 0; h < 2; h++) {
      const __m256i raw = load256(p + offsetof(BlockQ3_K, q) + 32 * h);
      for (int j = 0; j < 4; j++) {
        c.u[4 * h + j] = _mm256_add_epi8(_mm256_or_si256(bit_pair(raw, 2 * j), one_bit(mask, 4 * h + j, 2)), bias);
      }
    }
  }
};

// Eight 6-bit scales and mins, each for two groups of 16.
inline void decode_scales_k4(const uint8_t* s, Codes& c) {
  const uint32_t a = load_u32(s), b = load_u32(s + 4), t = load_u32(s + 8);
  const auto words = [](uint32_t lo, uint32_t hi) {
    const __m128i v = _mm_cvtsi64_si128(static_cast<int64_t>(static_cast<uint64_t>(hi) << 32 | lo));
    return _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(v, v));
  };
  c.scales = words(a & 0x3f3f3f3f, (t & 0x0f0f0f0f) | (a >> 2 & 0x30303030));
  c.mins = words(b & 0x3f3f3f3f, (t >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030));
}

struct DecodeQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kMinima = true;
  static void codes(const uint8_t* p, Codes& c) {
    decode_scales_k4(p + offsetof(BlockQ4_K, scales), c);
    for (int i = 0; i < 4; i++) {
      const __m256i raw = load256(p + offsetof(BlockQ4_K, q) + 32 * i);
      c.u[2 * i] = low_nibbles(raw);
      c.u[2 * i + 1] = high_nibbles(raw);
    }
  }
};

struct DecodeQ5_K {
  using Block = BlockQ5_K;
  static constexpr bool kMinima = true;
  static void codes(const uint8_t* p, Codes& c) {
    decode_scales_k4(p + offsetof(BlockQ5_K, scales), c);
    const __m256i high = load256(p + offsetof(BlockQ5_K, qh));
    for (int i = 0; i < 4; i++) {
      const __m256i raw = load256(p + offsetof(BlockQ5_K, q) + 32 * i);
      c.u[2 * i] = _mm256_or_si256(low_nibbles(raw), one_bit(high, 2 * i, 4));
      c.u[2 * i + 1] = _mm256_or_si256(high_nibbles(raw), one_bit(high, 2 * i + 1, 4));
    }
  }
};

struct DecodeQ6_K {
  using Block = BlockQ6_K;
  static constexpr bool kMinima = false;
  static void codes(const uint8_t* p, Codes& c) {
    set_signed(c, _mm256_cvtepi8_epi16(load128(p + offsetof(BlockQ6_K, scales))));
    const __m256i bias = _mm256_set1_epi8(kCodeOffset - 32);
    for (int h = 0; h < 2; h++) {
      const __m256i high = load256(p + offsetof(BlockQ6_K, qh) + 32 * h);
      const __m256i raw[2] = {load256(p + 64 * h), load256(p + 64 * h + 32)};
      for (int j = 0; j < 4; j++) {
        const __m256i low = j < 2 ? low_nibbles(raw[j]) : high_nibbles(raw[j - 2]);
        c.u[4 * h + j] = _mm256_add_epi8(_mm256_or_si256(low, _mm256_slli_epi16(bit_pair(high, 2 * j), 4)), bias);
      }
    }
  }
};

// kCodeOffset + magnitude * sign.
inline __m256i apply_signs(__m256i magnitude, __m256i mask) {
  return _mm256_add_epi8(_mm256_sub_epi8(_mm256_xor_si256(magnitude, mask), mask), _mm256_set1_epi8(kCodeOffset));
}
inline __m256i parity_signs(uint32_t bits) {
  const auto mask = [bits](int j) { return static_cast<int64_t>(kParitySignMasks[bits >> (7 * j) & 127]); };
  return _mm256_setr_epi64x(mask(0), mask(1), mask(2), mask(3));
}

// 2 s + 1 from the top bits of eight words, each for two groups of 16.
inline __m256i scales_of_words(__m256i bits) {
  const __m256i s = _mm256_or_si256(_mm256_srli_epi32(bits, 27), _mm256_set1_epi32(1));
  return _mm256_or_si256(s, _mm256_slli_epi32(s, 16));
}

struct DecodeIQ2_XXS {
  using Block = BlockIQ2_XXS;
  static constexpr bool kMinima = false;
  static constexpr float kScaleFactor = 0.125f;
  static void codes(const uint8_t* p, Codes& c) {
    for (int g = 0; g < 8; g++) {
      const uint8_t* q = p + 2 + 8 * g;
      const auto entry = [q](int j) { return static_cast<int64_t>(kBytesIQ2_XXS[q[j]]); };
      c.u[g] = apply_signs(_mm256_setr_epi64x(entry(0), entry(1), entry(2), entry(3)), parity_signs(load_u32(q + 4)));
    }
    const __m256 a = _mm256_castsi256_ps(load256(p + 2)), b = _mm256_castsi256_ps(load256(p + 34));
    const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    set_signed(c, scales_of_words(_mm256_permute4x64_epi64(odd, 0xd8)));
  }
};

struct DecodeIQ2_S {
  using Block = BlockIQ2_S;
  static constexpr bool kMinima = false;
  static constexpr float kScaleFactor = 0.125f;
  static void codes(const uint8_t* p, Codes& c) {
    const auto& b = *reinterpret_cast<const BlockIQ2_S*>(p);
    for (int g = 0; g < 8; g++) {
      const auto entry = [&](int j) {
        return static_cast<int64_t>(kBytesIQ2_S[b.q[4 * g + j] | (b.qh[g] >> (2 * j) & 3) << 8]);
      };
      const auto mask = [&](int j) { return static_cast<int64_t>(kSignMasks[b.signs[4 * g + j]]); };
      c.u[g] = apply_signs(
          _mm256_setr_epi64x(entry(0), entry(1), entry(2), entry(3)), _mm256_setr_epi64x(mask(0), mask(1), mask(2), mask(3)));
    }
    const __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(b.scales)));
    const __m256i both = _mm256_or_si256(_mm256_and_si256(s, _mm256_set1_epi32(15)), _mm256_slli_epi32(_mm256_srli_epi32(s, 4), 16));
    set_signed(c, _mm256_or_si256(_mm256_slli_epi32(both, 1), _mm256_set1_epi32(0x10001)));
  }
};

struct DecodeIQ3_XXS {
  using Block = BlockIQ3_XXS;
  static constexpr bool kMinima = false;
  static constexpr float kScaleFactor = 0.25f;
  static void codes(const uint8_t* p, Codes& c) {
    const uint8_t* bits = p + offsetof(BlockIQ3_XXS, signs_scales);
    for (int g = 0; g < 8; g++) {
      const uint8_t* q = p + offsetof(BlockIQ3_XXS, q) + 8 * g;
      const auto entry = [q](int j) { return static_cast<int>(kBytesIQ3_XXS[q[j]]); };
      c.u[g] = apply_signs(_mm256_setr_epi32(entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6), entry(7)),
                           parity_signs(load_u32(bits + 4 * g)));
    }
    set_signed(c, scales_of_words(load256(bits)));
  }
};

// 32-weight types: signed codes and the scale.
struct DecodeQ8_0 {
  using Block = BlockQ8_0;
  static __m256i codes(const uint8_t* p) { return load256(p + 2); }
  static float scale(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return _cvtsh_ss(h);
  }
};
struct DecodeMXFP4 {
  using Block = BlockMXFP4;
  static __m256i codes(const uint8_t* p) {
    const __m128i raw = load128(p + 1);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(raw, 4), raw);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(kDoubledE2M1)), low_nibbles(both));
  }
  static float scale(const uint8_t* p) { return mxfp4_scale(p[0]); }
};

}  // namespace grebe::cpu::avx2
