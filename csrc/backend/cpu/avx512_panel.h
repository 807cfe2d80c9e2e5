// AVX-512 panels: 16 weight rows transcoded to the layouts of avx512_tile.h.
//
// The rows are transposed while they are still compressed: a 32-bit lane then belongs to one row
// throughout, and unpacking yields [16 rows][4 weights] registers without further shuffles.
#pragma once

#include "backend/cpu/avx512_rows.h"
#include "backend/cpu/avx512_tile.h"
#include "quant/dequant.h"

namespace grebe::cpu::avx512 {

inline void store(uint8_t* p, __m512i v) { _mm512_store_si512(p, v); }
inline void store(uint8_t* p, __m512 v) { _mm512_store_ps(p, v); }
inline __m512i flip_sign_bit(__m512i v) {
  return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(0x80)));
}

struct PanelQ8_0 {
  static constexpr TileLayout kLayout = TileLayout::k32;
  static constexpr int kBlockBytes = sizeof(BlockQ8_0), kBlock = 32;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    __m512i col[4];
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      load_columns4(rows, offset + 2 + 16 * half, col);
      for (int c = 0; c < 4; c++) store(out + 64 * (4 * half + c), flip_sign_bit(col[c]));
    }
    store(out + 64 * 8, load_f16_column(rows, offset));
  }
};

// 7-bit sign codes in each 32-bit lane (bits 0-27) to four full sign bytes of even parity.
inline constexpr Bytes64 kSignShift =
    make_bytes([](int i) { return i % 8 / 4 * 32 + 7 * (i % 4); });

inline __m512i sign_bytes(__m512i bits) {
  const __m512i codes =
      _mm512_and_si512(_mm512_multishift_epi64_epi8(kSignShift, bits), _mm512_set1_epi8(0x7f));
  const __m512i parity = _mm512_slli_epi16(_mm512_popcnt_epi8(codes), 7);
  return _mm512_ternarylogic_epi32(
      codes, parity, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);  // codes | parity & 128
}

// Bit indices for vpshufbitqmb: byte 4 r + e of register m takes sign bit 4 m + e of row r; a qword
// holds two rows.
inline __m512i sign_bit_index(int m) {
  return _mm512_add_epi8(
      _mm512_set1_epi64(0x2322212003020100), _mm512_set1_epi8(static_cast<char>(4 * m)));
}

inline __m512i grid2_values() {
  return _mm512_set1_epi32(kGridValues2[0] | kGridValues2[1] << 8 | kGridValues2[2] << 16);
}

// Byte m of each 32-bit lane, four 2-bit ranks, to four bytes with junk above.
inline __m512i rank_shift(int m) {
  return _mm512_add_epi8(
      _mm512_set1_epi64(0x2624222006040200), _mm512_set1_epi8(static_cast<char>(8 * m)));
}

struct PanelIQ2_XXS {
  static constexpr TileLayout kLayout = TileLayout::kScale32;
  static constexpr int kBlockBytes = sizeof(BlockIQ2_XXS), kBlock = 256;

  // 32 weights: lanes of four grid indices, lanes of signs and scale.
  static void group(__m512i index, __m512i bits, int g, uint8_t* out) {
    const __m512i values = flip_sign_bit(grid2_values()), signs = sign_bytes(bits);
    const __mmask64 upper = _mm512_movepi8_mask(index);
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {
      const __m512i ranks = lookup256_plane(kPlanesIQ2_XXS[p], index, upper);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const __m512i v =
            _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(rank_shift(j), ranks), values);
        // 128 + g becomes 128 - g.
        const __mmask64 negative = _mm512_bitshuffle_epi64_mask(signs, sign_bit_index(2 * j + p));
        store(
            out + 64 * (8 * g + 2 * j + p),
            _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v));
      }
    }
    store(
        out + 64 * (64 + 1 + g),
        _mm512_or_si512(_mm512_srli_epi32(bits, 27), _mm512_set1_epi32(1)));
  }

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    __m512i col[4];
    for (int i = 0; i < 4; i++) {
      load_columns4(rows, offset + 2 + 16 * i, col);
      group(col[0], col[1], 2 * i, out);
      group(col[2], col[3], 2 * i + 1, out);
    }
    store(out + 64 * 64, _mm512_mul_ps(load_f16_column(rows, offset), _mm512_set1_ps(0.125f)));
  }
};

struct PanelQ2_K {
  static constexpr TileLayout kLayout = TileLayout::kMins;
  static constexpr int kBlockBytes = sizeof(BlockQ2_K), kBlock = 256;

  template <class Rows>
  static void block(Rows rows, int64_t offset, uint8_t* out) {
    const __m512i low2 = _mm512_set1_epi8(3), low4 = _mm512_set1_epi8(15);
    const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    // Byte b of each lane, twice, as two 16-bit scales: what vpmullw needs to scale four codes of
    // at most 3 by at most 15.
    const auto spread = [&](int b) {
      return _mm512_or_si512(
          _mm512_set1_epi32(static_cast<int>(0x80008000u + 0x10001u * static_cast<unsigned>(b))),
          lanes);
    };
    __m512i scale[16], col[4];
    load_columns4(rows, offset, col);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const __m512i s = _mm512_and_si512(col[c], low4),
                    m = _mm512_and_si512(_mm512_srli_epi16(col[c], 4), low4);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) scale[4 * c + b] = _mm512_shuffle_epi8(s, spread(b));
      // Pairs of mins as 16-bit.
      const __m512i pair0 =
          _mm512_or_si512(_mm512_set1_epi32(static_cast<int>(0x80018000u)), lanes);
      const __m512i pair1 =
          _mm512_or_si512(_mm512_set1_epi32(static_cast<int>(0x80038002u)), lanes);
      store(out + 64 * (66 + 2 * c), _mm512_shuffle_epi8(m, pair0));
      store(out + 64 * (66 + 2 * c + 1), _mm512_shuffle_epi8(m, pair1));
    }
    for (int i = 0; i < 4; i++) {  // bytes 16 i .. 16 i + 15 of q
      load_columns4(rows, offset + offsetof(BlockQ2_K, q) + 16 * i, col);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const int group = i / 2 * 8 + 2 * j + i % 2;
        for (int c = 0; c < 4; c++) {
          const __m512i q = _mm512_and_si512(_mm512_srli_epi16(col[c], 2 * j), low2);
          store(out + 64 * (4 * group + c), _mm512_mullo_epi16(q, scale[group]));
        }
      }
    }
    store(out + 64 * 64, load_f16_column(rows, offset + offsetof(BlockQ2_K, d)));
    store(out + 64 * 65, load_f16_column(rows, offset + offsetof(BlockQ2_K, dmin)));
  }
};

template <class Panel>
void pack_panel(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) {
  const auto all = [&](auto rows) {
    for (int64_t b = 0; b < n_in / Panel::kBlock; b++) {
      // The next panel's rows: sixteen short streams are more than the hardware follows.
      for (int r = 0; r < 16; r++) {
        const char* ahead =
            reinterpret_cast<const char*>(rows.p + (16 + r) * row_bytes + b * Panel::kBlockBytes);
        for (int i = 0; i < Panel::kBlockBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
      }
      Panel::block(rows, b * Panel::kBlockBytes, panel + b * panel_block_bytes(Panel::kLayout));
    }
  };
  if (n_rows == 16)
    all(Rows16{w, row_bytes});
  else
    all(ShortRows{w, row_bytes, static_cast<int>(n_rows) - 1});
}

}  // namespace grebe::cpu::avx512
