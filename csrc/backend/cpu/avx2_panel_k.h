// AVX2 panels of the remaining types; see avx2_panel.h for the scheme.
#pragma once

#include "backend/cpu/avx2_matvec_k.h"
#include "backend/cpu/avx2_panel.h"

namespace grebe::cpu::avx2 {

inline __m256 f16_of_low_half(__m256i v) {  // upper halves zero
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

// Bit `from` of each byte, moved to the single bit of `to`.
inline __m256i move_bit(__m256i v, int from, int to) {
  const __m256i moved =
      from < to ? _mm256_slli_epi16(v, to - from) : _mm256_srli_epi16(v, from - to);
  return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(1 << to)));
}

// The first 16 bytes of Q4_K and Q5_K blocks of eight rows: d, dmin, eight 6-bit scales and mins as
// bytes of two words.
struct HeaderK4 {
  __m256 d, dmin;
  __m256i scale[2], min[2];

  template <class Rows>
  HeaderK4(Rows rows, int64_t offset) {
    __m256i col[4];
    load_columns4(rows, offset, col);
    d = f16_of_low_half(_mm256_and_si256(col[0], _mm256_set1_epi32(0xffff)));
    dmin = f16_of_low_half(_mm256_srli_epi32(col[0], 16));
    const __m256i six = _mm256_set1_epi8(63), high = _mm256_set1_epi8(48);
    scale[0] = _mm256_and_si256(col[1], six);
    min[0] = _mm256_and_si256(col[2], six);
    scale[1] =
        _mm256_or_si256(low_nibbles(col[3]), _mm256_and_si256(_mm256_srli_epi16(col[1], 2), high));
    min[1] =
        _mm256_or_si256(high_nibbles(col[3]), _mm256_and_si256(_mm256_srli_epi16(col[2], 2), high));
  }
};

struct PanelQ4_K {
  static constexpr TileLayout kLayout = TileLayout::kScaleMins;
  static constexpr int kBlockBytes = sizeof(BlockQ4_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const HeaderK4 header(rows, offset);
    store(out + 64 * panel_d(kLayout), header.d);
    store(out + 64 * panel_d(kLayout) + 64, header.dmin);
    for (int g = 0; g < 8; g++)
      store(out + 64 * (panel_scales(kLayout) + g), byte_twice(header.scale[g / 4], g % 4));
    for (int i = 0; i < 4; i++)
      store(out + 64 * (panel_mins(kLayout) + i), byte_pair(header.min[i / 2], i % 2 * 2));
    __m256i col[4];
    for (int i = 0; i < 8;
         i++) {  // 16 bytes: 16 weights in low nibbles, 16 a group later in high ones
      load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ4_K, q)) + 16 * i, col);
      uint8_t* const to = out + 64 * (16 * (i / 2) + 4 * (i % 2));
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) {
        store(to + 64 * c, low_nibbles(col[c]));
        store(to + 64 * (c + 8), high_nibbles(col[c]));
      }
    }
  }
};

struct PanelQ5_K {
  static constexpr TileLayout kLayout = TileLayout::kMins;
  static constexpr int kBlockBytes = sizeof(BlockQ5_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const HeaderK4 header(rows, offset);
    store(out + 64 * panel_d(kLayout), header.d);
    store(out + 64 * panel_d(kLayout) + 64, header.dmin);
    for (int g = 0; g < 8; g++) {  // the layout has two scales and two minima for these 32 weights
      const __m256i scale = byte_twice(header.scale[g / 4], g % 4);
      store(out + 64 * (panel_scales(kLayout) + 2 * g), scale);
      store(out + 64 * (panel_scales(kLayout) + 2 * g + 1), scale);
      store(out + 64 * (panel_mins(kLayout) + g), byte_twice(header.min[g / 4], g % 4));
    }
    __m256i col[4], high[8];
    load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ5_K, qh)), high);
    load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ5_K, qh)) + 16, high + 4);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ5_K, q)) + 16 * i, col);
      uint8_t* const to = out + 64 * (16 * (i / 2) + 4 * (i % 2));
      const int group = i / 2 * 2;
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) {
        const __m256i h = high[4 * (i % 2) + c];
        store(to + 64 * c, _mm256_or_si256(low_nibbles(col[c]), move_bit(h, group, 4)));
        store(to + 64 * (c + 8), _mm256_or_si256(high_nibbles(col[c]), move_bit(h, group + 1, 4)));
      }
    }
  }
};

struct PanelQ6_K {
  static constexpr TileLayout kLayout = TileLayout::kScale16;
  static constexpr int kBlockBytes = sizeof(BlockQ6_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m256i bias = _mm256_set1_epi8(kCodeBias - 32);
    __m256i low[4], high[4];
    for (int i = 0; i < 8;
         i++) {  // 16 bytes of ql; which bit pair of qh depends on the group of 32
      const int half = i / 4, group = i % 4 / 2;
      load_columns4(rows, offset + 16 * i, low);
      load_columns4(
          rows,
          offset + static_cast<int64_t>(offsetof(BlockQ6_K, qh)) + 32 * half + 16 * (i % 2),
          high);
      uint8_t* const to = out + 64 * (32 * half + 4 * (i % 4));
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) {
        const __m256i a = _mm256_slli_epi16(bit_pair(high[c], 2 * group), 4);
        const __m256i b = _mm256_slli_epi16(bit_pair(high[c], 2 * group + 4), 4);
        store(to + 64 * c, _mm256_add_epi8(_mm256_or_si256(low_nibbles(low[c]), a), bias));
        store(to + 64 * (c + 16), _mm256_add_epi8(_mm256_or_si256(high_nibbles(low[c]), b), bias));
      }
    }
    load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ6_K, scales)), low);
    for (int g = 0; g < 16; g++) {  // signed: to the upper halves, then down
      const __m256i up = _mm256_shuffle_epi8(
          low[g / 4], lane_shuffle(0x00800080u + 0x01000100u * static_cast<unsigned>(g % 4)));
      store(out + 64 * (panel_scales(kLayout) + g), _mm256_srai_epi16(up, 8));
    }
    store(out + 64 * panel_d(kLayout), load_f16_column(rows, offset + offsetof(BlockQ6_K, d)));
  }
};

struct PanelQ3_K {
  static constexpr TileLayout kLayout = TileLayout::kScale16;
  static constexpr int kBlockBytes = sizeof(BlockQ3_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m256i bias = _mm256_set1_epi8(kCodeBias - 4);
    __m256i high[8], col[4];
    load_columns4(rows, offset, high);
    load_columns4(rows, offset + 16, high + 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ3_K, q)) + 16 * i, col);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        uint8_t* const to = out + 64 * 4 * (i / 2 * 8 + 2 * j + i % 2);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
          const __m256i h = move_bit(high[4 * (i % 2) + c], 4 * (i / 2) + j, 2);
          store(to + 64 * c, _mm256_add_epi8(_mm256_or_si256(bit_pair(col[c], 2 * j), h), bias));
        }
      }
    }
    // Scales and d are the last 14 bytes; 16 from two earlier stay inside the block.
    load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ3_K, scales)) - 2, col);
    const auto joined = [](__m256i a, __m256i b) {
      return _mm256_or_si256(_mm256_srli_epi32(a, 16), _mm256_slli_epi32(b, 16));
    };
    const __m256i low0 = joined(col[0], col[1]), low1 = joined(col[1], col[2]),
                  top = joined(col[2], col[3]);
    const __m256i nibbles[4] = {
        low_nibbles(low0), low_nibbles(low1), high_nibbles(low0), high_nibbles(low1)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const __m256i six = _mm256_or_si256(nibbles[i], _mm256_slli_epi16(bit_pair(top, 2 * i), 4));
      for (int b = 0; b < 4; b++) {
        store(
            out + 64 * (panel_scales(kLayout) + 4 * i + b),
            _mm256_sub_epi16(byte_twice(six, b), _mm256_set1_epi16(32)));
      }
    }
    store(out + 64 * panel_d(kLayout), f16_of_low_half(_mm256_srli_epi32(col[3], 16)));
  }
};

struct PanelIQ3_XXS {
  static constexpr TileLayout kLayout = TileLayout::kScale32;
  static constexpr int kBlockBytes = sizeof(BlockIQ3_XXS), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    __m256i bits[8];
    load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockIQ3_XXS, signs_scales)), bits);
    load_columns4(
        rows, offset + static_cast<int64_t>(offsetof(BlockIQ3_XXS, signs_scales)) + 16, bits + 4);
    Words8 signs[8];
    for (int g = 0; g < 8; g++) signs[g].set(sign_bytes(bits[g]));
    for (int g = 0; g < 8; g++) {
      __m256i v[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) {
        const uint8_t* const index = rows[r] + offset + offsetof(BlockIQ3_XXS, q) + 8 * g;
        v[r] = signed_code(DotIQ3_XXS::magnitudes(index), sign_mask(signs[g][r]));
      }
      store_grid(v, out + 64 * 8 * g);
      const __m256i scale = iq_scale(bits[g]);
      store(out + 64 * (panel_scales(kLayout) + 2 * g), scale);
      store(out + 64 * (panel_scales(kLayout) + 2 * g + 1), scale);
    }
    store(
        out + 64 * panel_d(kLayout),
        _mm256_mul_ps(load_f16_column(rows, offset), _mm256_set1_ps(0.25f)));
  }
};

struct PanelIQ2_S {
  static constexpr TileLayout kLayout = TileLayout::kScale32;
  static constexpr int kBlockBytes = sizeof(BlockIQ2_S), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    alignas(32) uint16_t index[8][32];
    for (int r = 0; r < 8; r++) DotIQ2_S::indices(rows[r] + offset, index[r]);
    for (int g = 0; g < 8; g++) {
      __m256i v[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) {
        const uint8_t* const signs = rows[r] + offset + offsetof(BlockIQ2_S, signs) + 4 * g;
        v[r] = signed_code(DotIQ2_S::magnitudes(index[r] + 4 * g), sign_mask(signs));
      }
      store_grid(v, out + 64 * 8 * g);
    }
    __m256i tail[4];
    load_columns4(
        rows,
        offset + static_cast<int64_t>(offsetof(BlockIQ2_S, qh)),
        tail);  // qh in two words, scales in two
    const __m256i one = _mm256_set1_epi8(1);
    for (int g = 0; g < 8; g++) {
      const __m256i s = tail[2 + g / 4];
      const auto odd = [&](__m256i nibbles) {
        return _mm256_or_si256(_mm256_slli_epi16(nibbles, 1), one);
      };
      store(out + 64 * (panel_scales(kLayout) + 2 * g), byte_twice(odd(low_nibbles(s)), g % 4));
      store(
          out + 64 * (panel_scales(kLayout) + 2 * g + 1), byte_twice(odd(high_nibbles(s)), g % 4));
    }
    store(
        out + 64 * panel_d(kLayout),
        _mm256_mul_ps(load_f16_column(rows, offset), _mm256_set1_ps(0.125f)));
  }
};

struct PanelMXFP4 {
  static constexpr TileLayout kLayout = TileLayout::k32;
  static constexpr int kBlockBytes = sizeof(BlockMXFP4), kBlock = 32;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m256i values = broadcast128(kDoubledE2M1);
    __m256i col[4], v[8];
    load_columns4(rows, offset + 1, col);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      v[c] = _mm256_shuffle_epi8(values, low_nibbles(col[c]));
      v[c + 4] = _mm256_shuffle_epi8(values, high_nibbles(col[c]));
    }
    store_k32(v, out);
    store(out + 64 * 8, load_e8m0_column(rows, offset));
  }
};

}  // namespace grebe::cpu::avx2
