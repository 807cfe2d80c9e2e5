// AVX-512 building blocks for 16 weight rows at once: strided loads that transpose on the way, and
// sums across lanes.
#pragma once

#include "backend/cpu/simd.h"
#include "quant/dequant.h"

namespace grebe::cpu::avx512 {

/// A register's worth of constants, computed at compile time.
struct alignas(64) Bytes64 {
  uint8_t v[64];
  operator __m512i() const { return _mm512_load_si512(v); }
};
template <class F>
constexpr Bytes64 make_bytes(F f) {
  Bytes64 b{};
  for (int i = 0; i < 64; i++) b.v[i] = static_cast<uint8_t>(f(i));
  return b;
}
/// Sixteen-bit elements.
template <class F>
constexpr Bytes64 make_words(F f) {
  return make_bytes([f](int i) { return f(i / 2) >> (i % 2 * 8); });
}

/// Sixteen rows in memory, `stride` bytes apart.
struct Rows16 {
  const uint8_t* p;
  int64_t stride;
  const uint8_t* operator[](int r) const { return p + r * stride; }
};
/// Fewer than sixteen: the last one stands in for the missing.
struct ShortRows {
  const uint8_t* p;
  int64_t stride;
  int last;
  const uint8_t* operator[](int r) const { return p + (r < last ? r : last) * stride; }
};

inline __m128i load128(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline __m256i load256(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

/// col[c] lane r = 32-bit word c of the 16 bytes at rows[r] + offset.
template <class Rows>
void load_columns4(Rows rows, int64_t offset, __m512i col[4]) {
  __m512i v[4];  // v[i]: rows i, i+4, i+8, i+12 in its four 128-bit lanes
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512i t = _mm512_castsi128_si512(load128(rows[i] + offset));
    t = _mm512_inserti32x4(t, load128(rows[i + 4] + offset), 1);
    t = _mm512_inserti32x4(t, load128(rows[i + 8] + offset), 2);
    v[i] = _mm512_inserti32x4(t, load128(rows[i + 12] + offset), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  col[0] = _mm512_unpacklo_epi64(a, c);
  col[1] = _mm512_unpackhi_epi64(a, c);
  col[2] = _mm512_unpacklo_epi64(b, d);
  col[3] = _mm512_unpackhi_epi64(b, d);
}

/// The f16 at rows[r] + offset, as f32 lanes.
template <class Rows>
__m512 load_f16_column(Rows rows, int64_t offset) {
  alignas(32) uint16_t h[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; r++) std::memcpy(&h[r], rows[r] + offset, 2);
  __m128i lo = _mm_cvtsi32_si128(h[0]), hi = _mm_cvtsi32_si128(h[8]);
#define GREBE_INSERT_(i)              \
  lo = _mm_insert_epi16(lo, h[i], i); \
  hi = _mm_insert_epi16(hi, h[8 + i], i)
  GREBE_INSERT_(1);
  GREBE_INSERT_(2);
  GREBE_INSERT_(3);
  GREBE_INSERT_(4);
  GREBE_INSERT_(5);
  GREBE_INSERT_(6);
  GREBE_INSERT_(7);
#undef GREBE_INSERT_
  return _mm512_cvtph_ps(_mm256_set_m128i(hi, lo));
}

/// Lane r % 4 of each 128-bit lane: what is left of v[r] after adding within its 128-bit lanes.
inline __m512i add_within_lanes(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v0, v1), _mm512_unpackhi_epi32(v0, v1));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v2, v3), _mm512_unpackhi_epi32(v2, v3));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/// Lane r = sum of the lanes of v[r].
inline __m512i add_across(const __m512i v[16]) {
  const __m512i u0 = add_within_lanes(v[0], v[1], v[2], v[3]),
                u1 = add_within_lanes(v[4], v[5], v[6], v[7]);
  const __m512i u2 = add_within_lanes(v[8], v[9], v[10], v[11]),
                u3 = add_within_lanes(v[12], v[13], v[14], v[15]);
  const __m512i t0 =
      _mm512_add_epi32(_mm512_shuffle_i64x2(u0, u1, 0x44), _mm512_shuffle_i64x2(u0, u1, 0xee));
  const __m512i t1 =
      _mm512_add_epi32(_mm512_shuffle_i64x2(u2, u3, 0x44), _mm512_shuffle_i64x2(u2, u3, 0xee));
  return _mm512_add_epi32(_mm512_shuffle_i64x2(t0, t1, 0x88), _mm512_shuffle_i64x2(t0, t1, 0xdd));
}

/// 256 16-bit entries in eight registers: the low 6 bits of an index select within a pair, bits 6
/// and 7 the pair.
inline __m512i lookup256(const uint16_t* table, __m512i index) {
  const auto grid = [table](int i) { return _mm512_load_si512(table + 32 * i); };
  const __mmask32 m6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(0x40));
  const __mmask32 m7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(0x80));
  const __m512i g01 = _mm512_mask_mov_epi16(
      _mm512_permutex2var_epi16(grid(0), index, grid(1)),
      m6,
      _mm512_permutex2var_epi16(grid(2), index, grid(3)));
  const __m512i g23 = _mm512_mask_mov_epi16(
      _mm512_permutex2var_epi16(grid(4), index, grid(5)),
      m6,
      _mm512_permutex2var_epi16(grid(6), index, grid(7)));
  return _mm512_mask_mov_epi16(g01, m7, g23);
}

/// The grid of IQ2_XXS in two byte planes: ranks of weights 0-3 and 4-7 of each entry.
struct PlanesIQ2_XXS {
  alignas(64) uint8_t v[2][256] = {};
  constexpr PlanesIQ2_XXS() {
    for (int i = 0; i < 512; i++)
      v[i / 256][i % 256] = static_cast<uint8_t>(kGridIQ2_XXS[i % 256] >> (i / 256 * 8));
  }
  constexpr const uint8_t* operator[](int p) const { return v[p]; }
};
inline constexpr PlanesIQ2_XXS kPlanesIQ2_XXS;

/// 64 byte lookups in 256 bytes; `upper` is bit 7 of the indices.
inline __m512i lookup256_plane(const uint8_t* plane, __m512i index, __mmask64 upper) {
  const auto part = [plane](int i) { return _mm512_load_si512(plane + 64 * i); };
  return _mm512_mask_mov_epi8(
      _mm512_permutex2var_epi8(part(0), index, part(1)),
      upper,
      _mm512_permutex2var_epi8(part(2), index, part(3)));
}

/// kGridIQ2_S with room for 32-bit gathers of its last entry.
struct PaddedGridIQ2_S {
  alignas(64) uint16_t v[1026] = {};
  constexpr PaddedGridIQ2_S() {
    for (int i = 0; i < 1024; i++) v[i] = kGridIQ2_S[i];
  }
};
inline constexpr PaddedGridIQ2_S kGridIQ2_S_padded;

/// Calls f(rows, first row, mask of lanes to store) until n_rows are covered. The last group
/// reaches back to stay full.
template <class F>
void for_row_groups(const uint8_t* w, int64_t row_bytes, int64_t n_rows, F f) {
  if (n_rows < 16) {
    f(ShortRows{w, row_bytes, static_cast<int>(n_rows) - 1},
      0,
      static_cast<__mmask16>((1u << n_rows) - 1));
    return;
  }
  for (int64_t r = 0; r < n_rows; r += 16) {
    const int64_t first = r + 16 <= n_rows ? r : n_rows - 16;
    f(Rows16{w + first * row_bytes, row_bytes}, first, static_cast<__mmask16>(0xffff));
  }
}

}  // namespace grebe::cpu::avx512
