// AVX-512 panels of the remaining types; see avx512_panel.h for the scheme.
#pragma once

#include "backend/cpu/avx512_panel.h"

namespace grebe::cpu::avx512 {

inline __m512i low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
inline __m512 f16_of_low_half(__m512i v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }

// Bit pairs of each byte, b in 0, 2, 4, 6.
inline __m512i bit_pair(__m512i v, int b) {
  return _mm512_and_si512(_mm512_srli_epi16(v, static_cast<unsigned>(b)), _mm512_set1_epi8(3));
}

// Shuffle indices that move bytes of each 32-bit lane: 0x80 in `pattern` gives zero.
inline __m512i lane_shuffle(uint32_t pattern) {
  return _mm512_or_si512(
      _mm512_set1_epi32(static_cast<int>(pattern)),
      _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}

// Byte b of each lane as i32.
inline __m512i byte_u32(__m512i v, int b) {
  return _mm512_and_si512(
      _mm512_srli_epi32(v, static_cast<unsigned>(8 * b)), _mm512_set1_epi32(255));
}
inline __m512i byte_i32(__m512i v, int b) {
  return _mm512_srai_epi32(_mm512_slli_epi32(v, static_cast<unsigned>(24 - 8 * b)), 24);
}

// The first 16 bytes of Q4_K and Q5_K blocks of 16 rows: d, dmin, eight 6-bit scales and mins as
// bytes of two words.
struct HeaderK4 {
  __m512 d, dmin;
  __m512i scale[2], min[2];

  template <class Rows>
  HeaderK4(Rows rows, int64_t offset) {
    __m512i col[4];
    load_columns4(rows, offset, col);
    d = f16_of_low_half(col[0]);
    dmin = f16_of_low_half(_mm512_srli_epi32(col[0], 16));
    const __m512i six = _mm512_set1_epi8(63), high = _mm512_set1_epi8(48);
    scale[0] = _mm512_and_si512(col[1], six);
    min[0] = _mm512_and_si512(col[2], six);
    scale[1] =
        _mm512_or_si512(low_nibbles(col[3]), _mm512_and_si512(_mm512_srli_epi16(col[1], 2), high));
    min[1] =
        _mm512_or_si512(high_nibbles(col[3]), _mm512_and_si512(_mm512_srli_epi16(col[2], 2), high));
  }

  void store_panel(uint8_t* out) const {
    store(out + 64 * 64, d);
    store(out + 64 * 65, dmin);
    for (int g = 0; g < 8; g++) store(out + 64 * (66 + g), byte_u32(scale[g / 4], g % 4));
    for (int i = 0; i < 4; i++) {
      const __m512i pair = lane_shuffle(i % 2 ? 0x80038002u : 0x80018000u);
      store(out + 64 * (74 + i), _mm512_shuffle_epi8(min[i / 2], pair));
    }
  }
};

struct PanelQ4_K {
  static constexpr TileLayout kLayout = TileLayout::kScaleMins;
  static constexpr int kBlockBytes = sizeof(BlockQ4_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    HeaderK4(rows, offset).store_panel(out);
    __m512i col[4];
    for (int i = 0; i < 8;
         i++) {  // 16 bytes: 16 weights in low nibbles, 16 a group later in high ones
      load_columns4(rows, offset + offsetof(BlockQ4_K, q) + 16 * i, col);
      uint8_t* const to = out + 64 * (16 * (i / 2) + 4 * (i % 2));
      for (int c = 0; c < 4; c++) {
        store(to + 64 * c, low_nibbles(col[c]));
        store(to + 64 * (c + 8), high_nibbles(col[c]));
      }
    }
  }
};

struct PanelQ5_K {
  static constexpr TileLayout kLayout = TileLayout::kScaleMins;
  static constexpr int kBlockBytes = sizeof(BlockQ5_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    HeaderK4(rows, offset).store_panel(out);
    __m512i col[4], high[8];
    load_columns4(rows, offset + offsetof(BlockQ5_K, qh), high);
    load_columns4(rows, offset + offsetof(BlockQ5_K, qh) + 16, high + 4);
    // Bit `group` of each byte, moved to bit 4.
    const auto fifth = [&](int c, int group) {
      const __m512i moved = group < 4
                                ? _mm512_slli_epi16(high[c], static_cast<unsigned>(4 - group))
                                : _mm512_srli_epi16(high[c], static_cast<unsigned>(group - 4));
      return _mm512_and_si512(moved, _mm512_set1_epi8(16));
    };
    for (int i = 0; i < 8; i++) {
      load_columns4(rows, offset + offsetof(BlockQ5_K, q) + 16 * i, col);
      uint8_t* const to = out + 64 * (16 * (i / 2) + 4 * (i % 2));
      const int group = i / 2 * 2;
      for (int c = 0; c < 4; c++) {
        store(to + 64 * c, _mm512_or_si512(low_nibbles(col[c]), fifth(4 * (i % 2) + c, group)));
        store(
            to + 64 * (c + 8),
            _mm512_or_si512(high_nibbles(col[c]), fifth(4 * (i % 2) + c, group + 1)));
      }
    }
  }
};

struct PanelQ6_K {
  static constexpr TileLayout kLayout = TileLayout::kScale16;
  static constexpr int kBlockBytes = sizeof(BlockQ6_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m512i bias = _mm512_set1_epi8(128 - 32);
    __m512i low[4], high[4];
    for (int i = 0; i < 8;
         i++) {  // 16 bytes of ql; which bit pair of qh depends on the group of 32
      const int half = i / 4, group = i % 4 / 2;
      load_columns4(rows, offset + 16 * i, low);
      load_columns4(rows, offset + offsetof(BlockQ6_K, qh) + 32 * half + 16 * (i % 2), high);
      uint8_t* const to = out + 64 * (32 * half + 4 * (i % 4));
      for (int c = 0; c < 4; c++) {
        const __m512i a = _mm512_slli_epi16(bit_pair(high[c], 2 * group), 4);
        const __m512i b = _mm512_slli_epi16(bit_pair(high[c], 2 * group + 4), 4);
        store(to + 64 * c, _mm512_add_epi8(_mm512_or_si512(low_nibbles(low[c]), a), bias));
        store(to + 64 * (c + 16), _mm512_add_epi8(_mm512_or_si512(high_nibbles(low[c]), b), bias));
      }
    }
    load_columns4(rows, offset + offsetof(BlockQ6_K, scales), low);
    for (int g = 0; g < 16; g++) store(out + 64 * (65 + g), byte_i32(low[g / 4], g % 4));
    store(out + 64 * 64, load_f16_column(rows, offset + offsetof(BlockQ6_K, d)));
  }
};

struct PanelQ3_K {
  static constexpr TileLayout kLayout = TileLayout::kScale16;
  static constexpr int kBlockBytes = sizeof(BlockQ3_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m512i bias = _mm512_set1_epi8(128 - 4), four = _mm512_set1_epi8(4);
    __m512i high[8], col[4];
    load_columns4(rows, offset, high);
    load_columns4(rows, offset + 16, high + 4);
    for (int i = 0; i < 4; i++) {
      load_columns4(rows, offset + offsetof(BlockQ3_K, q) + 16 * i, col);
      for (int j = 0; j < 4; j++) {
        const int bit = 4 * (i / 2) + j, group = i / 2 * 8 + 2 * j + i % 2;
        for (int c = 0; c < 4; c++) {
          const __m512i h = high[4 * (i % 2) + c];
          const __m512i moved = bit < 2 ? _mm512_slli_epi16(h, static_cast<unsigned>(2 - bit))
                                        : _mm512_srli_epi16(h, static_cast<unsigned>(bit - 2));
          const __m512i q = _mm512_or_si512(bit_pair(col[c], 2 * j), _mm512_and_si512(moved, four));
          store(out + 64 * (4 * group + c), _mm512_add_epi8(q, bias));
        }
      }
    }
    // Scales and d are the last 14 bytes; 16 from two earlier stay inside the block.
    load_columns4(rows, offset + offsetof(BlockQ3_K, scales) - 2, col);
    const auto joined = [](__m512i a, __m512i b) {
      return _mm512_or_si512(_mm512_srli_epi32(a, 16), _mm512_slli_epi32(b, 16));
    };
    const __m512i low0 = joined(col[0], col[1]), low1 = joined(col[1], col[2]),
                  top = joined(col[2], col[3]);
    const __m512i nibbles[4] = {
        low_nibbles(low0), low_nibbles(low1), high_nibbles(low0), high_nibbles(low1)};
    for (int i = 0; i < 4; i++) {
      const __m512i six = _mm512_or_si512(nibbles[i], _mm512_slli_epi16(bit_pair(top, 2 * i), 4));
      for (int b = 0; b < 4; b++) {
        store(
            out + 64 * (65 + 4 * i + b), _mm512_sub_epi32(byte_u32(six, b), _mm512_set1_epi32(32)));
      }
    }
    store(out + 64 * 64, f16_of_low_half(_mm512_srli_epi32(col[3], 16)));
  }
};

inline constexpr int64_t kGridValues3Word = [] {
  uint64_t word = 0;
  for (int i = 0; i < 8; i++) word |= static_cast<uint64_t>(kGridValues3[i]) << (8 * i);
  return static_cast<int64_t>(word);
}();

struct PanelIQ3_XXS {
  static constexpr TileLayout kLayout = TileLayout::kScale32;
  static constexpr int kBlockBytes = sizeof(BlockIQ3_XXS), kBlock = 256;

  // Index bytes 2 j and 2 j + 1 of each lane to 16 bits; entry j of a lane to four bytes.
  static constexpr Bytes64 kWiden[2] = {
      make_bytes([](int i) { return i % 2 ? 0x80 : i % 16 / 4 * 4 + i % 4 / 2; }),
      make_bytes([](int i) { return i % 2 ? 0x80 : i % 16 / 4 * 4 + i % 4 / 2 + 2; })};
  static constexpr Bytes64 kRankShift[2] = {
      make_bytes([](int i) { return i % 8 / 4 * 32 + 3 * (i % 4); }),
      make_bytes([](int i) { return i % 8 / 4 * 32 + 3 * (i % 4) + 16; })};

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m512i values = flip_sign_bit(_mm512_set1_epi64(kGridValues3Word));
    __m512i index[4], bits[8];
    load_columns4(rows, offset + offsetof(BlockIQ3_XXS, signs_scales), bits);
    load_columns4(rows, offset + offsetof(BlockIQ3_XXS, signs_scales) + 16, bits + 4);
    for (int g = 0; g < 8; g++) {
      if (g % 2 == 0) load_columns4(rows, offset + offsetof(BlockIQ3_XXS, q) + 8 * g, index);
      const __m512i signs = sign_bytes(bits[g]);
#pragma GCC unroll 8
      for (int m = 0; m < 8; m++) {  // four weights: index byte m of the group
        const __m512i ranks = lookup256(
            kGridIQ3_XXS, _mm512_shuffle_epi8(index[g % 2 * 2 + m / 4], kWiden[m % 4 / 2]));
        const __m512i v =
            _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(kRankShift[m % 2], ranks), values);
        const __mmask64 negative = _mm512_bitshuffle_epi64_mask(signs, sign_bit_index(m));
        store(out + 64 * (8 * g + m), _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v));
      }
      store(
          out + 64 * (65 + g),
          _mm512_or_si512(_mm512_srli_epi32(bits[g], 27), _mm512_set1_epi32(1)));
    }
    store(out + 64 * 64, _mm512_mul_ps(load_f16_column(rows, offset), _mm512_set1_ps(0.25f)));
  }
};

struct PanelIQ2_S {
  static constexpr TileLayout kLayout = TileLayout::kScale16;
  static constexpr int kBlockBytes = sizeof(BlockIQ2_S), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m512i values = flip_sign_bit(grid2_values());
    __m512i index[8], signs[8], tail[4];
    for (int i = 0; i < 2; i++) {
      load_columns4(rows, offset + offsetof(BlockIQ2_S, q) + 16 * i, index + 4 * i);
      load_columns4(rows, offset + offsetof(BlockIQ2_S, signs) + 16 * i, signs + 4 * i);
    }
    load_columns4(rows, offset + offsetof(BlockIQ2_S, qh), tail);  // qh in two words, scales in two
    for (int g = 0; g < 8; g++) {
      for (int j = 0; j < 4; j++) {
        const __m512i high = bit_pair(byte_u32(tail[g / 4], g % 4), 2 * j);
        const __m512i entry = _mm512_or_si512(byte_u32(index[g], j), _mm512_slli_epi32(high, 8));
        // 1024 entries are too many for registers.
        const __m512i ranks = _mm512_i32gather_epi32(entry, kGridIQ2_S_padded.v, 2);
#pragma GCC unroll 2
        for (int m = 0; m < 2; m++) {
          const __m512i v =
              _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(rank_shift(m), ranks), values);
          const __mmask64 negative =
              _mm512_bitshuffle_epi64_mask(signs[g], sign_bit_index(2 * j + m));
          store(
              out + 64 * (8 * g + 2 * j + m),
              _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v));
        }
      }
      const __m512i scales = byte_u32(tail[2 + g / 4], g % 4), one = _mm512_set1_epi32(1);
      const __m512i low = _mm512_and_si512(scales, _mm512_set1_epi32(15)),
                    high = _mm512_srli_epi32(scales, 4);
      store(out + 64 * (65 + 2 * g), _mm512_or_si512(_mm512_slli_epi32(low, 1), one));
      store(out + 64 * (66 + 2 * g), _mm512_or_si512(_mm512_slli_epi32(high, 1), one));
    }
    store(out + 64 * 64, _mm512_mul_ps(load_f16_column(rows, offset), _mm512_set1_ps(0.125f)));
  }
};

// mxfp4_scale() of the first byte of each row's block.
template <class Rows>
__m512 load_e8m0_column(Rows rows, int64_t offset) {
  alignas(16) uint8_t e[16];
  for (int r = 0; r < 16; r++) e[r] = rows[r][offset];
  const __m512i v = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(e)));
  const __mmask16 tiny = _mm512_cmplt_epu32_mask(v, _mm512_set1_epi32(2));
  const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(v, _mm512_set1_epi32(1)), 23);
  return _mm512_castsi512_ps(
      _mm512_mask_sllv_epi32(normal, tiny, _mm512_set1_epi32(0x00200000), v));
}

inline __m512i doubled_e2m1() {
  return _mm512_broadcast_i32x4(load128(reinterpret_cast<const uint8_t*>(kDoubledE2M1)));
}

struct PanelMXFP4 {
  static constexpr TileLayout kLayout = TileLayout::k32;
  static constexpr int kBlockBytes = sizeof(BlockMXFP4), kBlock = 32;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m512i values = flip_sign_bit(doubled_e2m1());
    __m512i col[4];
    load_columns4(rows, offset + 1, col);
    for (int c = 0; c < 4; c++) {
      store(out + 64 * c, _mm512_shuffle_epi8(values, low_nibbles(col[c])));
      store(out + 64 * (c + 4), _mm512_shuffle_epi8(values, high_nibbles(col[c])));
    }
    store(out + 64 * 8, load_e8m0_column(rows, offset));
  }
};

}  // namespace grebe::cpu::avx512
