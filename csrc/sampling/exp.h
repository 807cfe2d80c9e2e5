// exp() of float arrays in plain loops that compilers vectorise: only exact IEEE operations in a
// fixed order, so the result is the same on every machine (libm's exp is not), which seeded
// sampling relies on. Compile with -ffp-contract=off.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace grebe {

/// exp(x) for x <= 0, relative error below 3e-7; exactly 1 at 0, exactly 0 below -87 and at -inf.
inline float exp_nonpositive(float x) {
  // Comparing magnitudes as integers: a floating-point select may trap, which keeps gcc from
  // vectorising the loop (3x slower).
  constexpr int32_t kLimit = std::bit_cast<int32_t>(87.0f);  // e^-87 is still a normal float
  const int32_t magnitude = std::bit_cast<int32_t>(x) & INT32_MAX;
  const float clamped = -std::bit_cast<float>(magnitude < kLimit ? magnitude : kLimit);
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer in the low mantissa
  // bits.
  constexpr float kRound = 12582912.0f;
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  // Taylor's polynomial with the last coefficients fitted [Cephes expf].
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) << 23);
  const int32_t keep = magnitude <= kLimit ? -1 : 0;
  return std::bit_cast<float>((std::bit_cast<int32_t>(p) + exponent) & keep);
}

/// Sum over i of exp((x[i] - max) * scale), every x[i] <= max; the terms go to `out` unless it is
/// null. Adds in lanes, block by block: the order is part of the result.
inline double sum_exp(const float* x, size_t n, float max, float scale, float* out) {
  constexpr size_t kLanes = 8, kBlock = 256;
  double lanes[kLanes] = {};
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t n_terms = n - begin < kBlock ? n - begin : kBlock;
    float terms[kBlock] = {};
    for (size_t i = 0; i < n_terms; ++i) terms[i] = exp_nonpositive((x[begin + i] - max) * scale);
    for (size_t i = 0; i < kBlock; i += kLanes) {
      for (size_t k = 0; k < kLanes; ++k) lanes[k] += static_cast<double>(terms[i + k]);
    }
    if (out) std::memcpy(out + begin, terms, n_terms * sizeof(float));
  }
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

}  // namespace grebe
