// What the families share: sixteen groups of weights side by side, one group a lane, so that a
// search for scales needs no sum across lanes. Included by the per-ISA translation units only.
#pragma once

#include <initializer_list>

#include "quant/blocks.h"
#include "quant/lanes.h"

namespace grebe::quant::GREBE_ISA {

inline constexpr float kWorst = 3e38f;  ///< more than any error

/// Weights x and importances w of 16 groups of kSize, with the sums that every fit needs.
template <int kSize>
struct Groups {
  F16x x[kSize], w[kSize];
  F16x sum_w, sum_wx;

  /// Groups past n_groups are zeros of importance 1.
  Groups(const float* src, const float* weight, int64_t n_groups) {
    alignas(64) float tx[kSize][16], tw[kSize][16];
    for (int lane = 0; lane < 16; lane++) {
      const bool some = lane < n_groups;
      for (int k = 0; k < kSize; k++) {
        tx[k][lane] = some ? src[lane * kSize + k] : 0.f;
        tw[k][lane] = some ? weight[lane * kSize + k] : 1.f;
      }
    }
    sum_w = sum_wx = splat(0.f);
    for (int k = 0; k < kSize; k++) {
      x[k] = load(tx[k]);
      w[k] = load(tw[k]);
      sum_w = sum_w + w[k];
      sum_wx = sum_wx + w[k] * x[k];
    }
  }

  F16x largest_magnitude() const {
    F16x m = splat(0.f);
    for (int k = 0; k < kSize; k++) m = max(m, abs(x[k]));
    return m;
  }
};

/// The nearest f16; what is larger than any becomes the largest. To even in ties, ties of the last
/// bit of a normal number apart.
inline F16x round_to_f16(F16x a) {
  a = clamp(a, splat(-65504.f), splat(65504.f));
  const F16x c = a * splat(8193.f);  // splits 24 bits into 11 and 13 [Dekker 1971]
  const F16x normal = c - (c - a);
  const F16x subnormal = (a + splat(0.75f)) - splat(0.75f);  // multiples of 2^-24
  return select(abs(a) < splat(0x1p-14f), subnormal, normal);
}

/// Bits of a float that is exactly an f16.
inline uint16_t f16_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t a = bits & 0x7fffffff;
  if (a >= 0x38800000) return static_cast<uint16_t>(sign | (a - 0x38000000) >> 13);
  const float magnitude = f < 0 ? -f : f;
  return static_cast<uint16_t>(sign | static_cast<uint16_t>(magnitude * 0x1p24f));
}

/// The largest power of two that is not above a > 0; 0 of less than the smallest normal number.
inline F16x power_below(F16x a) {
  alignas(64) uint32_t bits[16];
  std::memcpy(bits, &a, sizeof a);
  for (uint32_t& b : bits) b &= 0x7f800000;
  std::memcpy(&a, bits, sizeof a);
  return a;
}

/// In every lane the sum over its run of kRun lanes.
template <int kRun>
F16x spread_sum(F16x a) {
  alignas(64) float t[16];
  store(t, a);
  for (int begin = 0; begin < 16; begin += kRun) {
    float s = 0;
    for (int i = begin; i < begin + kRun; i++) s += t[i];
    for (int i = begin; i < begin + kRun; i++) t[i] = s;
  }
  return load(t);
}

template <int kRun>
F16x spread_max(F16x a) {
  alignas(64) float t[16];
  store(t, a);
  for (int begin = 0; begin < 16; begin += kRun) {
    float m = t[begin];
    for (int i = begin; i < begin + kRun; i++) m = t[i] > m ? t[i] : m;
    for (int i = begin; i < begin + kRun; i++) t[i] = m;
  }
  return load(t);
}

}  // namespace grebe::quant::GREBE_ISA
