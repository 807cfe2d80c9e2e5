// Q8_0: one scale, 32 signed bytes. Scales around amax / 127, each with one step of least squares;
// what counts is the error with the scale as an f16. With the power of two among them, weights on
// an MXFP4 grid come out exactly, and so do the larger ones of an FP8 matrix.
#pragma once

#include "quant/quantize_groups.h"

namespace grebe::quant::GREBE_ISA {

struct Q8Fit {
  F16x wqx, wqq, error;
};

inline F16x q8_codes(F16x x, F16x inverse) {
  return clamp(round(x * inverse), splat(-127.f), splat(127.f));
}

inline Q8Fit q8_fit(const Groups<32>& g, F16x d) {
  const F16x inverse = inverse_or_zero(d);
  Q8Fit f{splat(0.f), splat(0.f), splat(0.f)};
  for (int k = 0; k < 32; k++) {
    const F16x q = q8_codes(g.x[k], inverse), wq = g.w[k] * q, rest = g.x[k] - d * q;
    f.wqx = f.wqx + wq * g.x[k];
    f.wqq = f.wqq + wq * q;
    f.error = f.error + g.w[k] * rest * rest;
  }
  return f;
}

inline void quantize_q8_0(const float* x, const float* w, int64_t n, uint8_t* out, float*) {
  auto* blocks = reinterpret_cast<BlockQ8_0*>(out);
  for (int64_t first = 0; first < n / 32; first += 16) {
    const int64_t n_groups = n / 32 - first < 16 ? n / 32 - first : 16;
    const Groups<32> g(x + 32 * first, w + 32 * first, n_groups);
    const F16x amax = g.largest_magnitude();
    F16x best_d = splat(0.f), best_error = splat(kWorst);
    for (const float steps : {127.f, 126.f, 126.5f, 127.25f, 127.49f, 128.f, 64.f}) {
      F16x d = round_to_f16((steps == 64.f ? power_below(amax) : amax) / splat(steps));
      for (int round = 0; round < 2; round++) {
        const Q8Fit f = q8_fit(g, d);
        const Mask better = f.error < best_error;
        best_error = select(better, f.error, best_error);
        best_d = select(better, d, best_d);
        d = round_to_f16(f.wqx * inverse_or_zero(f.wqq));
      }
    }
    alignas(64) float q[32][16], d[16];
    const F16x inverse = inverse_or_zero(best_d);
    for (int k = 0; k < 32; k++) store(q[k], q8_codes(g.x[k], inverse));
    store(d, best_d);
    for (int64_t i = 0; i < n_groups; i++) {
      blocks[first + i].d = f16_bits(d[i]);
      for (int k = 0; k < 32; k++) blocks[first + i].q[k] = static_cast<int8_t>(q[k][i]);
    }
  }
}

}  // namespace grebe::quant::GREBE_ISA
