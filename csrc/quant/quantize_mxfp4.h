// MXFP4: a power of two and 32 E2M1 codes.
//
// The smallest exponent that clips nothing, and the two below it: its grid contains that of every
// larger exponent up to the largest weight, so larger ones cannot win. Weights that are on an
// MXFP4 grid come out exactly.
#pragma once

#include "quant/quantize_groups.h"

namespace grebe::quant::GREBE_ISA {

inline float mxfp4_power(int e) {  // 2^(e - 127), e in 0..254
  const uint32_t bits = e == 0 ? 0x00400000u : static_cast<uint32_t>(e) << 23;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

/// Magnitudes to the E2M1 grid {0, .5, 1, 1.5, 2, 3, 4, 6}, ties to the even code.
inline F16x round_to_e2m1(F16x a) {
  const F16x fine = round(a * splat(2.f)) * splat(0.5f);
  const F16x coarse = select(a < splat(4.f), round(a), round(a * splat(0.5f)) * splat(2.f));
  return select(a < splat(2.f), fine, min(coarse, splat(6.f)));
}

inline void quantize_mxfp4(const float* x, const float* w, int64_t n, uint8_t* out, float*) {
  auto* blocks = reinterpret_cast<BlockMXFP4*>(out);
  for (int64_t first = 0; first < n / 32; first += 16) {
    const int64_t n_groups = n / 32 - first < 16 ? n / 32 - first : 16;
    const Groups<32> g(x + 32 * first, w + 32 * first, n_groups);
    alignas(64) float amax[16], power[16], inverse[16];
    int e0[16], best_e[16];
    store(amax, g.largest_magnitude());
    for (int i = 0; i < 16; i++) {
      int e = 0;
      while (e < 254 && amax[i] > 6.f * mxfp4_power(e))
        e += amax[i] > 6e8f * mxfp4_power(e) ? 24 : 1;
      e0[i] = best_e[i] = e < 254 ? e : 254;
    }
    F16x best_error = splat(kWorst), best_inverse = splat(0.f);
    for (int down = 0; down < 3; down++) {
      for (int i = 0; i < 16; i++) {
        power[i] = mxfp4_power(e0[i] > down ? e0[i] - down : 0);
        inverse[i] = 1.f / power[i];
      }
      const F16x p = load(power), inv = load(inverse);
      F16x error = splat(0.f);
      for (int k = 0; k < 32; k++) {
        const F16x a = abs(g.x[k]);
        const F16x rest = a - p * round_to_e2m1(a * inv);
        error = error + g.w[k] * rest * rest;
      }
      alignas(64) float before[16], now[16];
      store(before, best_error);
      store(now, error);
      for (int i = 0; i < 16; i++) {
        if (now[i] < before[i]) best_e[i] = e0[i] > down ? e0[i] - down : 0;
      }
      const Mask better = error < best_error;
      best_error = select(better, error, best_error);
      best_inverse = select(better, inv, best_inverse);
    }
    alignas(64) float values[32][16];
    for (int k = 0; k < 32; k++) store(values[k], round_to_e2m1(abs(g.x[k]) * best_inverse));
    for (int64_t i = 0; i < n_groups; i++) {
      BlockMXFP4& b = blocks[first + i];
      b.e = static_cast<uint8_t>(best_e[i]);
      uint8_t codes[32];
      for (int k = 0; k < 32; k++) {
        const int doubled = static_cast<int>(values[k][i] * 2.f);  // 0 1 2 3 4 6 8 12
        const int code = doubled < 5 ? doubled : doubled == 6 ? 5 : doubled == 8 ? 6 : 7;
        const bool negative = x[32 * (first + i) + k] < 0;
        codes[k] = static_cast<uint8_t>(code | (negative && code ? 8 : 0));
      }
      for (int k = 0; k < 16; k++) b.q[k] = static_cast<uint8_t>(codes[k] | codes[k + 16] << 4);
    }
  }
}

}  // namespace grebe::quant::GREBE_ISA
