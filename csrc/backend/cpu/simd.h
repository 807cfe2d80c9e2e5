// Sixteen floats as one value, on every instruction set, with identical results on all of them.
//
// Included by the per-ISA translation units only; GREBE_ISA names the namespace so that the copies
// do not collide. An AVX2 "register" is two halves, a NEON one four quarters, the scalar one an
// array: same lanes, same order, fused multiply-add everywhere (std::fma where the machine has
// none), so a kernel written once gives the same bits on every table. All translation units are
// built with -ffp-contract=off: fma happens where it is written and nowhere else.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"

#ifndef GREBE_ISA
#error "GREBE_ISA must name the namespace of this translation unit"
#endif

#if defined(GREBE_ISA_AVX512) || defined(GREBE_ISA_AVX2)
#include <immintrin.h>
#elif defined(GREBE_ISA_NEON)
#include <arm_neon.h>
#endif

namespace grebe::cpu::GREBE_ISA {

#if defined(GREBE_ISA_AVX512)

struct f32x16 {
  __m512 v;
};
inline f32x16 zero16() { return {_mm512_setzero_ps()}; }
inline f32x16 set16(float x) { return {_mm512_set1_ps(x)}; }
inline f32x16 load16(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store16(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
inline f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// The second operand where either is NaN, as x86 max does; the other tables copy that.
inline f32x16 max16(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f32x16 min16(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline f32x16 abs16(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline f32x16 round16(f32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// 2^n for integral n in [-126, 127].
inline f32x16 exp2i16(f32x16 n) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
inline f32x16 load16_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

#elif defined(GREBE_ISA_AVX2)

struct f32x16 {
  __m256 a, b;
};
inline f32x16 zero16() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline f32x16 set16(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32x16 load16(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store16(float* p, f32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline f32x16 fma16(f32x16 x, f32x16 y, f32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline f32x16 operator+(f32x16 x, f32x16 y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline f32x16 operator-(f32x16 x, f32x16 y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline f32x16 operator*(f32x16 x, f32x16 y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline f32x16 operator/(f32x16 x, f32x16 y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
inline f32x16 max16(f32x16 x, f32x16 y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
inline f32x16 min16(f32x16 x, f32x16 y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
inline f32x16 abs16(f32x16 x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline f32x16 round16(f32x16 x) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
}
inline f32x16 exp2i16(f32x16 n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.a), bias), 23)),
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.b), bias), 23))};
}
inline f32x16 load16_f16(const uint16_t* p) {
  return {
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}

#elif defined(GREBE_ISA_NEON)

struct f32x16 {
  float32x4_t q[4];
};
#define GREBE_EACH_(expr)                      \
  f32x16 r;                                    \
  for (int i = 0; i < 4; i++) r.q[i] = (expr); \
  return r
inline f32x16 set16(float x) { GREBE_EACH_(vdupq_n_f32(x)); }
inline f32x16 zero16() { return set16(0.f); }
inline f32x16 load16(const float* p) { GREBE_EACH_(vld1q_f32(p + 4 * i)); }
inline void store16(float* p, f32x16 a) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.q[i]);
}
inline f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) {
  GREBE_EACH_(vfmaq_f32(c.q[i], a.q[i], b.q[i]));
}
inline f32x16 operator+(f32x16 a, f32x16 b) { GREBE_EACH_(vaddq_f32(a.q[i], b.q[i])); }
inline f32x16 operator-(f32x16 a, f32x16 b) { GREBE_EACH_(vsubq_f32(a.q[i], b.q[i])); }
inline f32x16 operator*(f32x16 a, f32x16 b) { GREBE_EACH_(vmulq_f32(a.q[i], b.q[i])); }
inline f32x16 operator/(f32x16 a, f32x16 b) { GREBE_EACH_(vdivq_f32(a.q[i], b.q[i])); }
inline f32x16 max16(f32x16 a, f32x16 b) {
  GREBE_EACH_(vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]));
}
inline f32x16 min16(f32x16 a, f32x16 b) {
  GREBE_EACH_(vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]));
}
inline f32x16 abs16(f32x16 a) { GREBE_EACH_(vabsq_f32(a.q[i])); }
inline f32x16 round16(f32x16 a) { GREBE_EACH_(vrndnq_f32(a.q[i])); }
inline f32x16 exp2i16(f32x16 n) {
  GREBE_EACH_(
      vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.q[i]), vdupq_n_s32(127)), 23)));
}
inline f32x16 load16_f16(const uint16_t* p) {
  GREBE_EACH_(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
#undef GREBE_EACH_

#else  // scalar

struct f32x16 {
  float v[16];
};
#define GREBE_EACH_(expr)                       \
  f32x16 r;                                     \
  for (int i = 0; i < 16; i++) r.v[i] = (expr); \
  return r
inline f32x16 set16(float x) { GREBE_EACH_(x); }
inline f32x16 zero16() { return set16(0.f); }
inline f32x16 load16(const float* p) { GREBE_EACH_(p[i]); }
inline void store16(float* p, f32x16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) { GREBE_EACH_(std::fma(a.v[i], b.v[i], c.v[i])); }
inline f32x16 operator+(f32x16 a, f32x16 b) { GREBE_EACH_(a.v[i] + b.v[i]); }
inline f32x16 operator-(f32x16 a, f32x16 b) { GREBE_EACH_(a.v[i] - b.v[i]); }
inline f32x16 operator*(f32x16 a, f32x16 b) { GREBE_EACH_(a.v[i] * b.v[i]); }
inline f32x16 operator/(f32x16 a, f32x16 b) { GREBE_EACH_(a.v[i] / b.v[i]); }
inline f32x16 max16(f32x16 a, f32x16 b) { GREBE_EACH_(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline f32x16 min16(f32x16 a, f32x16 b) { GREBE_EACH_(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline f32x16 abs16(f32x16 a) { GREBE_EACH_(std::fabs(a.v[i])); }
inline f32x16 round16(f32x16 a) { GREBE_EACH_(std::nearbyintf(a.v[i])); }
inline f32x16 exp2i16(f32x16 n) {
  GREBE_EACH_(std::bit_cast<float>(static_cast<uint32_t>(static_cast<int>(n.v[i]) + 127) << 23));
}
inline f32x16 load16_f16(const uint16_t* p) { GREBE_EACH_(f16_to_f32(p[i])); }
#undef GREBE_EACH_

#endif

/// 16 KV codes as floats times `scale`: an E4M3 code shifted into a half has exponent bias 15
/// instead of 7, so the caller's scale carries 2^8 more. NaN codes are not preserved (480 comes
/// out); rows are written by us and hold none.
inline f32x16 load16_e4m3(const uint8_t* p, float scale_2p8) {
#if defined(GREBE_ISA_AVX512) || defined(GREBE_ISA_AVX2)
  const __m256i c = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i h = _mm256_or_si256(
      _mm256_slli_epi16(_mm256_and_si256(c, _mm256_set1_epi16(0x7f)), 7),
      _mm256_slli_epi16(_mm256_and_si256(c, _mm256_set1_epi16(0x80)), 8));
#if defined(GREBE_ISA_AVX512)
  return {_mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(scale_2p8))};
#else
  const __m256 s = _mm256_set1_ps(scale_2p8);
  return {
      _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(h)), s),
      _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)), s)};
#endif
#else
  uint16_t h[16];
  for (int i = 0; i < 16; i++)
    h[i] = static_cast<uint16_t>((p[i] & 0x7f) << 7 | (p[i] & 0x80) << 8);
  return load16_f16(h) * set16(scale_2p8);
#endif
}

/// 16 bf16 numbers from memory of any alignment.
inline f32x16 load16_bf16(const uint8_t* p) {
#if defined(GREBE_ISA_AVX512)
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
#else
  float t[16];
  for (int i = 0; i < 16; i++) {
    uint16_t h;
    std::memcpy(&h, p + 2 * i, 2);
    t[i] = bf16_to_f32(h);
  }
  return load16(t);
#endif
}

/// Sixteen 32-bit integers: lanes of a panel product.
#if defined(GREBE_ISA_AVX512)
struct i32x16 {
  __m512i v;
};
inline i32x16 izero16() { return {_mm512_setzero_si512()}; }
inline i32x16 iset16(int32_t x) { return {_mm512_set1_epi32(x)}; }
/// acc[lane] += sum over 4 of panel u8[lane][4] * q i8[4]; panel codes at most 64.
inline i32x16 dot4(i32x16 acc, const uint8_t* panel, int32_t q) {
  return {_mm512_dpbusd_epi32(acc.v, _mm512_loadu_si512(panel), _mm512_set1_epi32(q))};
}
inline f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
#elif defined(GREBE_ISA_AVX2)
struct i32x16 {
  __m256i a, b;
};
inline i32x16 izero16() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline i32x16 iset16(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline i32x16 dot4(i32x16 acc, const uint8_t* panel, int32_t q) {
  const __m256i one = _mm256_set1_epi16(1), qv = _mm256_set1_epi32(q);
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32));
  return {
      _mm256_add_epi32(acc.a, _mm256_madd_epi16(one, _mm256_maddubs_epi16(lo, qv))),
      _mm256_add_epi32(acc.b, _mm256_madd_epi16(one, _mm256_maddubs_epi16(hi, qv)))};
}
inline f32x16 to_f32(i32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
#elif defined(GREBE_ISA_NEON)
struct i32x16 {
  int32x4_t q[4];
};
inline i32x16 iset16(int32_t x) {
  return {{vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x)}};
}
inline i32x16 izero16() { return iset16(0); }
inline i32x16 dot4(i32x16 acc, const uint8_t* panel, int32_t q) {
  const int8x16_t qv = vreinterpretq_s8_s32(vdupq_n_s32(q));
  for (int i = 0; i < 4; i++) {
    acc.q[i] = vdotq_s32(acc.q[i], vreinterpretq_s8_u8(vld1q_u8(panel + 16 * i)), qv);
  }
  return acc;
}
inline f32x16 to_f32(i32x16 a) {
  f32x16 r;
  for (int i = 0; i < 4; i++) r.q[i] = vcvtq_f32_s32(a.q[i]);
  return r;
}
#else
struct i32x16 {
  int32_t v[16];
};
inline i32x16 iset16(int32_t x) {
  i32x16 r;
  for (int i = 0; i < 16; i++) r.v[i] = x;
  return r;
}
inline i32x16 izero16() { return iset16(0); }
inline i32x16 dot4(i32x16 acc, const uint8_t* panel, int32_t q) {
  int8_t b[4];
  std::memcpy(b, &q, 4);
  for (int i = 0; i < 64; i++) acc.v[i / 4] += panel[i] * b[i % 4];
  return acc;
}
inline f32x16 to_f32(i32x16 a) {
  f32x16 r;
  for (int i = 0; i < 16; i++) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
#endif

/// The first n lanes from memory, the others zero. 0 <= n <= 16.
inline f32x16 load16_n(const float* p, int n) {
  alignas(64) float t[16] = {};
  std::memcpy(t, p, sizeof(float) * n);
  return load16(t);
}
inline void store16_n(float* p, f32x16 a, int n) {
  alignas(64) float t[16];
  store16(t, a);
  std::memcpy(p, t, sizeof(float) * n);
}

/// Sum of the lanes in one fixed order: halves are added until one lane is left.
inline float reduce16(f32x16 a) {
  alignas(64) float t[16];
  store16(t, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) t[i] = t[i] + t[i + width];
  return t[0];
}

/// exp(x) to about 2 ulp: x = n ln2 + r, degree-6 polynomial in r [Cephes expf]. Below -87 the
/// result is 0.
inline f32x16 exp16(f32x16 x) {
  const f32x16 lo = set16(-87.f), hi = set16(88.f);
  const f32x16 c = max16(min16(x, hi), lo);
  const f32x16 n = round16(c * set16(1.44269504088896341f));
  f32x16 r = fma16(n, set16(-0.693359375f), c);
  r = fma16(n, set16(2.12194440e-4f), r);
  f32x16 p = set16(1.9875691500e-4f);
  p = fma16(p, r, set16(1.3981999507e-3f));
  p = fma16(p, r, set16(8.3334519073e-3f));
  p = fma16(p, r, set16(4.1665795894e-2f));
  p = fma16(p, r, set16(1.6666665459e-1f));
  p = fma16(p, r, set16(5.0000001201e-1f));
  p = fma16(p * r, r, r) + set16(1.f);
  f32x16 result = p * exp2i16(n);
#if defined(GREBE_ISA_AVX512)
  result.v = _mm512_mask_blend_ps(
      _mm512_cmp_ps_mask(x.v, lo.v, _CMP_LT_OQ), result.v, _mm512_setzero_ps());
#elif defined(GREBE_ISA_AVX2)
  result.a = _mm256_andnot_ps(_mm256_cmp_ps(x.a, lo.a, _CMP_LT_OQ), result.a);
  result.b = _mm256_andnot_ps(_mm256_cmp_ps(x.b, lo.b, _CMP_LT_OQ), result.b);
#elif defined(GREBE_ISA_NEON)
  for (int i = 0; i < 4; i++) {
    result.q[i] = vbslq_f32(vcltq_f32(x.q[i], lo.q[i]), vdupq_n_f32(0.f), result.q[i]);
  }
#else
  for (int i = 0; i < 16; i++) result.v[i] = x.v[i] < lo.v[i] ? 0.f : result.v[i];
#endif
  return result;
}

/// Dot product of the canonical float order (matmul.h): lane j takes k = j mod 16; n a multiple of
/// 16 or padded with zeros.
inline float dot16(const float* a, const float* b, int64_t n) {
  f32x16 acc = zero16();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) acc = fma16(load16(a + i), load16(b + i), acc);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    acc = fma16(load16_n(a + i, rest), load16_n(b + i, rest), acc);
  }
  return reduce16(acc);
}

}  // namespace grebe::cpu::GREBE_ISA
