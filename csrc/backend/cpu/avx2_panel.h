// AVX2 panels: 16 weight rows, eight at a time, transcoded to the layouts of avx2_tile.h.
//
// Plain bit fields are transposed while they are still packed: a 32-bit lane then belongs to one
// row throughout. Codes from a grid are looked up row by row and transposed as bytes.
#pragma once

#include "backend/cpu/avx2_matvec.h"
#include "backend/cpu/avx2_tile.h"

namespace grebe::cpu::avx2 {

inline void store(uint8_t* p, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store(uint8_t* p, __m256 v) { _mm256_store_ps(reinterpret_cast<float*>(p), v); }

/// Shuffle indices that move bytes of each 32-bit lane: 0x80 in `pattern` gives zero.
inline __m256i lane_shuffle(uint32_t pattern) {
  const __m128i lanes = _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c);
  return _mm256_or_si256(
      _mm256_set1_epi32(static_cast<int>(pattern)), _mm256_broadcastsi128_si256(lanes));
}
/// Byte b of each lane, unsigned, twice as 16 bits; bytes b and b + 1.
inline __m256i byte_twice(__m256i v, int b) {
  return _mm256_shuffle_epi8(v, lane_shuffle(0x80008000u + 0x10001u * static_cast<unsigned>(b)));
}
inline __m256i byte_pair(__m256i v, int b) {
  return _mm256_shuffle_epi8(v, lane_shuffle(0x80018000u + 0x10001u * static_cast<unsigned>(b)));
}

// Codes of a k32 block and what their signs leave out.
inline void store_k32(const __m256i v[8], uint8_t* out) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i negative = zero;
#pragma GCC unroll 8
  for (int c = 0; c < 8; c++) {
    store(out + 64 * c, v[c]);
    const __m256i magnitude =
        _mm256_and_si256(_mm256_abs_epi8(v[c]), _mm256_cmpgt_epi8(zero, v[c]));
    negative = _mm256_add_epi16(negative, _mm256_maddubs_epi16(magnitude, _mm256_set1_epi8(1)));
  }
  store(out + 64 * 9, _mm256_madd_epi16(negative, _mm256_set1_epi16(1)));
}

struct PanelQ8_0 {
  static constexpr TileLayout kLayout = TileLayout::k32;
  static constexpr int kBlockBytes = sizeof(BlockQ8_0), kBlock = 32;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    __m256i v[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) v[r] = load256(rows[r] + offset + 2);
    transpose8(v);
    store_k32(v, out);
    store(out + 64 * 8, load_f16_column(rows, offset));
  }
};

// 32 weights of eight rows of a grid type.
inline void store_grid(__m256i v[8], uint8_t* out) {
  transpose8(v);
#pragma GCC unroll 8
  for (int c = 0; c < 8; c++) store(out + 64 * c, v[c]);
}
inline __m256i signed_code(__m256i magnitude, __m256i negative) {
  return _mm256_add_epi8(negate_where(magnitude, negative), _mm256_set1_epi8(kCodeBias));
}

struct PanelIQ2_XXS {
  static constexpr TileLayout kLayout = TileLayout::kScale32;
  static constexpr int kBlockBytes = sizeof(BlockIQ2_XXS), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    Words8 signs[8];
    __m256i col[4];
    for (int g = 0; g < 8; g++) {  // two at a time: indices, signs and scale of each
      if (g % 2 == 0) load_columns4(rows, offset + 2 + 8 * g, col);
      const __m256i bits = col[g % 2 * 2 + 1], scale = iq_scale(bits);
      signs[g].set(sign_bytes(bits));
      store(out + 64 * (panel_scales(kLayout) + 2 * g), scale);
      store(out + 64 * (panel_scales(kLayout) + 2 * g + 1), scale);
    }
    for (int g = 0; g < 8; g++) {
      __m256i v[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) {
        const __m256i magnitude = DotIQ2_XXS::magnitudes(rows[r] + offset + 2 + 8 * g);
        v[r] = signed_code(magnitude, sign_mask(signs[g][r]));
      }
      store_grid(v, out + 64 * 8 * g);
    }
    store(
        out + 64 * panel_d(kLayout),
        _mm256_mul_ps(load_f16_column(rows, offset), _mm256_set1_ps(0.125f)));
  }
};

struct PanelQ2_K {
  static constexpr TileLayout kLayout = TileLayout::kMins;
  static constexpr int kBlockBytes = sizeof(BlockQ2_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    uint8_t *const scales = out + 64 * panel_scales(kLayout), *const mins =
                                                                  out + 64 * panel_mins(kLayout);
    __m256i col[4];
    load_columns4(rows, offset, col);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const __m256i s = low_nibbles(col[c]), m = high_nibbles(col[c]);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) store(scales + 64 * (4 * c + b), byte_twice(s, b));
      store(mins + 64 * (2 * c), byte_pair(m, 0));
      store(mins + 64 * (2 * c + 1), byte_pair(m, 2));
    }
    for (int i = 0; i < 4; i++) {  // bytes 16 i .. 16 i + 15 of q
      load_columns4(rows, offset + static_cast<int64_t>(offsetof(BlockQ2_K, q)) + 16 * i, col);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        uint8_t* const to = out + 64 * 4 * (i / 2 * 8 + 2 * j + i % 2);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) store(to + 64 * c, bit_pair(col[c], 2 * j));
      }
    }
    store(out + 64 * panel_d(kLayout), load_f16_column(rows, offset + offsetof(BlockQ2_K, d)));
    store(
        out + 64 * panel_d(kLayout) + 64,
        load_f16_column(rows, offset + offsetof(BlockQ2_K, dmin)));
  }
};

template <class Panel, class Rows>
void pack_half(Rows rows, int64_t n_in, uint8_t* out) {
  for (int64_t b = 0; b < n_in / Panel::kBlock; b++) {
    // The next panel's rows: so many short streams are more than the hardware follows.
    for (int r = 0; r < 8; r++) {
      const char* ahead = reinterpret_cast<const char*>(
          rows.p + (kRows + r) * rows.stride + b * Panel::kBlockBytes);
      for (int i = 0; i < Panel::kBlockBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
    }
    Panel::block(rows, b * Panel::kBlockBytes, out + b * panel_block_bytes(Panel::kLayout));
  }
}

template <class Panel>
void pack_panel(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) {
  for (int64_t first = 0; first < kRows; first += 8) {
    if (first + 8 <= n_rows) {
      pack_half<Panel>(Rows8{w + first * row_bytes, row_bytes}, n_in, panel + 4 * first);
    } else {
      const int64_t from = std::min(first, n_rows - 1);
      pack_half<Panel>(
          ShortRows{w + from * row_bytes, row_bytes, static_cast<int>(n_rows - 1 - from)},
          n_in,
          panel + 4 * first);
    }
  }
}

}  // namespace grebe::cpu::avx2
