// AVX2 building blocks for eight weight rows at once: strided loads that transpose on the way, and
// sums across lanes.
#pragma once

#include "backend/cpu/grid_tables.h"
#include "backend/cpu/simd.h"

namespace grebe::cpu::avx2 {

/// A register's worth of constants, computed at compile time.
struct alignas(32) Bytes32 {
  uint8_t v[32];
  operator __m256i() const { return _mm256_load_si256(reinterpret_cast<const __m256i*>(v)); }
};
template <class F>
constexpr Bytes32 make_bytes(F f) {
  Bytes32 b{};
  for (int i = 0; i < 32; i++) b.v[i] = static_cast<uint8_t>(f(i));
  return b;
}

/// Eight rows in memory, `stride` bytes apart.
struct Rows8 {
  const uint8_t* p;
  int64_t stride;
  const uint8_t* operator[](int r) const { return p + r * stride; }
};
/// Fewer than eight: the last one stands in for the missing.
struct ShortRows {
  const uint8_t* p;
  int64_t stride;
  int last;
  const uint8_t* operator[](int r) const { return p + (r < last ? r : last) * stride; }
};

inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i load128x2(const void* p, const void* q) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(p)), load128(q), 1);
}
inline __m256i broadcast128(const void* p) { return _mm256_broadcastsi128_si256(load128(p)); }
inline __m256i broadcast32(const void* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
/// Bit pairs of each byte, b in 0, 2, 4, 6.
inline __m256i bit_pair(__m256i v, int b) {
  return _mm256_and_si256(_mm256_srli_epi16(v, b), _mm256_set1_epi8(3));
}

/// col[c] lane r = 32-bit word c of the 16 bytes at rows[r] + offset.
template <class Rows>
void load_columns4(Rows rows, int64_t offset, __m256i col[4]) {
  __m256i v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) v[i] = load128x2(rows[i] + offset, rows[i + 4] + offset);
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  col[0] = _mm256_unpacklo_epi64(a, c);
  col[1] = _mm256_unpackhi_epi64(a, c);
  col[2] = _mm256_unpacklo_epi64(b, d);
  col[3] = _mm256_unpackhi_epi64(b, d);
}

/// v[r] word c to v[c] word r.
inline void transpose8(__m256i v[8]) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    v[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
    v[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
  }
}

/// The f16 at rows[r] + offset, as f32 lanes.
template <class Rows>
__m256 load_f16_column(Rows rows, int64_t offset) {
  uint16_t h[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) std::memcpy(&h[r], rows[r] + offset, 2);
  __m128i v = _mm_cvtsi32_si128(h[0]);
  v = _mm_insert_epi16(v, h[1], 1);
  v = _mm_insert_epi16(v, h[2], 2);
  v = _mm_insert_epi16(v, h[3], 3);
  v = _mm_insert_epi16(v, h[4], 4);
  v = _mm_insert_epi16(v, h[5], 5);
  v = _mm_insert_epi16(v, h[6], 6);
  v = _mm_insert_epi16(v, h[7], 7);
  return _mm256_cvtph_ps(v);
}

/// mxfp4_scale() of the first byte of each row's block.
template <class Rows>
__m256 load_e8m0_column(Rows rows, int64_t offset) {
  alignas(8) uint8_t e[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) e[r] = rows[r][offset];
  const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(e)));
  const __m256i one = _mm256_set1_epi32(1);
  const __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), v);
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(v, one), 23);
  return _mm256_castsi256_ps(_mm256_blendv_epi8(tiny, normal, _mm256_cmpgt_epi32(v, one)));
}

/// Lane r % 4 of each 128-bit lane: what is left of v[r] after adding within its 128-bit lanes.
inline __m256i add_within_lanes(__m256i v0, __m256i v1, __m256i v2, __m256i v3) {
  const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(v0, v1), _mm256_unpackhi_epi32(v0, v1));
  const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(v2, v3), _mm256_unpackhi_epi32(v2, v3));
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/// Lane r = sum of the lanes of v[r].
inline __m256i add_across(const __m256i v[8]) {
  const __m256i a = add_within_lanes(v[0], v[1], v[2], v[3]),
                b = add_within_lanes(v[4], v[5], v[6], v[7]);
  return _mm256_add_epi32(
      _mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/// Calls f(rows, first row, lanes to store) until n_rows are covered. The last group reaches back
/// to stay full.
template <class F>
void for_row_groups(const uint8_t* w, int64_t row_bytes, int64_t n_rows, F f) {
  if (n_rows < 8)
    return f(ShortRows{w, row_bytes, static_cast<int>(n_rows) - 1}, 0, static_cast<int>(n_rows));
  for (int64_t r = 0; r < n_rows; r += 8) {
    const int64_t first = r + 8 <= n_rows ? r : n_rows - 8;
    f(Rows8{w + first * row_bytes, row_bytes}, first, 8);
  }
}

/// Lanes from memory: all, the first n, or none.
inline __m256 load_lanes(const float* p, int n) {
  if (n >= 8) return _mm256_loadu_ps(p);
  alignas(32) float t[8] = {};
  if (n > 0) std::memcpy(t, p, sizeof(float) * static_cast<size_t>(n));
  return _mm256_load_ps(t);
}
inline void store_lanes(float* p, __m256 v, int n) {
  if (n >= 8) return _mm256_storeu_ps(p, v);
  alignas(32) float t[8];
  _mm256_store_ps(t, v);
  if (n > 0) std::memcpy(p, t, sizeof(float) * static_cast<size_t>(n));
}

/// Keeps the compiler from regrouping a sum of integers into a tree, for which there are not enough
/// registers.
inline __m256i in_order(__m256i v) {
  asm("" : "+x"(v));
  return v;
}

/// Words that are broadcast one by one. From memory that takes no shuffle; a compiler that sees the
/// store would take them out of the register instead.
struct Words8 {
  alignas(32) uint32_t v[8];
  void set(__m256i words) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(v), words);
    asm("" : "+m"(v));
  }
  const uint32_t* operator[](int i) const { return v + i; }
};

/// Four entries of eight magnitudes.
inline __m256i join4(const uint64_t& a, const uint64_t& b, const uint64_t& c, const uint64_t& d) {
  const auto pair = [](const uint64_t& lo, const uint64_t& hi) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&lo));
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(v), reinterpret_cast<const __m64*>(&hi)));
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(pair(a, b)), pair(c, d), 1);
}

/// 7-bit sign codes in bits 0-27 of each 32-bit lane to four full sign bytes of even parity.
inline __m256i sign_bytes(__m256i bits) {
  const auto code = [&](int i) {
    return _mm256_and_si256(
        _mm256_slli_epi32(bits, i), _mm256_set1_epi32(static_cast<int>(0x7fu << (8 * i))));
  };
  const __m256i codes =
      _mm256_or_si256(_mm256_or_si256(code(0), code(1)), _mm256_or_si256(code(2), code(3)));
  static constexpr Bytes32 kParity =
      make_bytes([](int i) { return std::popcount(static_cast<unsigned>(i % 16)) % 2 * 128; });
  const __m256i odd = _mm256_xor_si256(
      _mm256_shuffle_epi8(kParity, low_nibbles(codes)),
      _mm256_shuffle_epi8(kParity, high_nibbles(codes)));
  return _mm256_or_si256(codes, odd);
}

/// Four sign bytes at p to a mask of 32 bytes: -1 where the bit is set.
inline __m256i sign_mask(const void* p) {
  static constexpr Bytes32 kSpread = make_bytes([](int i) { return i / 8; });
  static constexpr Bytes32 kBit = make_bytes([](int i) { return 1 << (i % 8); });
  const __m256i v = _mm256_shuffle_epi8(broadcast32(p), kSpread);
  return _mm256_cmpeq_epi8(_mm256_and_si256(v, kBit), kBit);
}
inline __m256i negate_where(__m256i v, __m256i mask) {
  return _mm256_sub_epi8(_mm256_xor_si256(v, mask), mask);
}

/// 2 * (bits >> 28) + 1 of each lane, in both its halves.
inline __m256i iq_scale(__m256i bits) {
  const __m256i s = _mm256_or_si256(_mm256_srli_epi32(bits, 27), _mm256_set1_epi32(1));
  return _mm256_or_si256(s, _mm256_slli_epi32(s, 16));
}

}  // namespace grebe::cpu::avx2
