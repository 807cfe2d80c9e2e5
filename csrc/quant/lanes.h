// Sixteen floats as one value, in the compiler's own vectors of the width that the machine has.
//
// For the quantizers, which must give the same bytes everywhere: only operations that IEEE 754
// defines to the last bit are here, and no fused multiply-add. Included by the per-ISA translation
// units only; GREBE_ISA names the namespace, so that the copies do not collide.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef GREBE_ISA
#error "GREBE_ISA must name the namespace of this translation unit"
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here crosses a translation unit
#endif

namespace grebe::quant::GREBE_ISA {

#if defined(__AVX512F__)
inline constexpr int kRegister = 16;
#elif defined(__AVX2__)
inline constexpr int kRegister = 8;
#else
inline constexpr int kRegister = 4;
#endif
inline constexpr int kParts = 16 / kRegister;

typedef float FloatRegister __attribute__((vector_size(4 * kRegister)));
typedef int32_t IntRegister __attribute__((vector_size(4 * kRegister)));

struct F16x {
  FloatRegister p[kParts];
};
struct Mask {
  IntRegister p[kParts];  ///< all bits or none
};

#define GREBE_EACH_(type, expr)                     \
  type r;                                           \
  for (int i = 0; i < kParts; i++) r.p[i] = (expr); \
  return r
inline F16x splat(float x) { GREBE_EACH_(F16x, (FloatRegister{} + x)); }
inline F16x operator+(F16x a, F16x b) { GREBE_EACH_(F16x, a.p[i] + b.p[i]); }
inline F16x operator-(F16x a, F16x b) { GREBE_EACH_(F16x, a.p[i] - b.p[i]); }
inline F16x operator*(F16x a, F16x b) { GREBE_EACH_(F16x, a.p[i] * b.p[i]); }
inline F16x operator/(F16x a, F16x b) { GREBE_EACH_(F16x, a.p[i] / b.p[i]); }
inline Mask operator<(F16x a, F16x b) { GREBE_EACH_(Mask, a.p[i] < b.p[i]); }
inline Mask operator&(Mask a, Mask b) { GREBE_EACH_(Mask, a.p[i] & b.p[i]); }
inline Mask operator|(Mask a, Mask b) { GREBE_EACH_(Mask, a.p[i] | b.p[i]); }
inline F16x select(Mask m, F16x a, F16x b) { GREBE_EACH_(F16x, m.p[i] ? a.p[i] : b.p[i]); }
inline F16x min(F16x a, F16x b) { GREBE_EACH_(F16x, a.p[i] < b.p[i] ? a.p[i] : b.p[i]); }
inline F16x max(F16x a, F16x b) { GREBE_EACH_(F16x, a.p[i] > b.p[i] ? a.p[i] : b.p[i]); }
#undef GREBE_EACH_

inline F16x load(const float* p) {
  F16x r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
inline void store(float* p, F16x a) { std::memcpy(p, &a, sizeof a); }
inline F16x clamp(F16x x, F16x lo, F16x hi) { return min(max(x, lo), hi); }
inline F16x abs(F16x a) { return max(a, splat(0.f) - a); }

/// To the nearest integer, ties to even, for |a| < 2^22: adding 1.5 * 2^23 leaves no fraction.
inline F16x round(F16x a) {
  const F16x magic = splat(12582912.f);
  return (a + magic) - magic;
}

/// 1 / a, and 0 where a is 0.
inline F16x inverse_or_zero(F16x a) {
  const F16x zero = splat(0.f);
  const Mask some = (zero < a) | (a < zero);
  return select(some, splat(1.f) / select(some, a, splat(1.f)), zero);
}

/// Sum of lanes [begin, end) in their order.
inline double sum(F16x a, int begin = 0, int end = 16) {
  float t[16];
  store(t, a);
  double s = 0;
  for (int i = begin; i < end; i++) s += static_cast<double>(t[i]);
  return s;
}

}  // namespace grebe::quant::GREBE_ISA
