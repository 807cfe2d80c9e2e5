// Q6_K: w = d s (q - 32), sixteen groups of 16 with a signed byte s. The codes reach one step
// further on the negative side, so both signs of a group's scale are tried. The power of two and
// s up to 64 are there for weights on an MXFP4 grid, which come out exactly.
#pragma once

#include "quant/quantize_groups.h"

namespace grebe::quant::GREBE_ISA {

struct Q6 {
  struct Fit {
    F16x wqx, wqq, error;
  };

  static F16x code(F16x x, F16x inverse) {
    return clamp(round(x * inverse), splat(-32.f), splat(31.f));
  }

  static Fit fit(const Groups<16>& g, F16x scale) {
    const F16x inverse = inverse_or_zero(scale);
    Fit f{splat(0.f), splat(0.f), splat(0.f)};
    for (int k = 0; k < 16; k++) {
      const F16x q = code(g.x[k], inverse), wq = g.w[k] * q, rest = g.x[k] - scale * q;
      f.wqx = f.wqx + wq * g.x[k];
      f.wqq = f.wqq + wq * q;
      f.error = f.error + g.w[k] * rest * rest;
    }
    return f;
  }

  static F16x fit_groups(const Groups<16>& g) {
    const F16x amax = g.largest_magnitude();
    F16x best = splat(0.f), best_error = splat(kWorst);
    const auto consider = [&](F16x scale, int rounds) {
      for (int round = 0; round < rounds; round++) {
        const Fit f = fit(g, scale);
        const Mask better = f.error < best_error;
        best_error = select(better, f.error, best_error);
        best = select(better, scale, best);
        scale = f.wqx * inverse_or_zero(f.wqq);
      }
    };
    consider(power_below(amax) * splat(1.f / 16), 1);  // first: in a tie it stays
    for (const float steps :
         {31.f, -31.f, 32.f, -32.f, 30.2f, 31.4f, -31.4f, 32.4f, -32.4f, 34.f}) {
      consider(amax / splat(steps), 2);
    }
    return best;
  }

  struct Choice {
    F16x d, s;
  };

  static Choice fit_block(const Groups<16>& g) {
    const F16x ideal = fit_groups(g), low = splat(-128.f), high = splat(127.f);
    const F16x most = spread_max<16>(abs(ideal));
    Choice best{splat(0.f), splat(0.f)};
    F16x best_total = splat(kWorst);
    for (const float steps : {127.f, 124.f, 64.f}) {
      F16x d = round_to_f16(most / splat(steps));
      F16x s0 = clamp(round(ideal * inverse_or_zero(d)), low, high);
      for (int round = 0; round < 3; round++) {
        F16x s = s0, error = splat(kWorst), p = splat(0.f), a = splat(0.f);
        for (const float ds : {0.f, -1.f, 1.f}) {
          const F16x t = clamp(s0 + splat(ds), low, high);
          const Fit f = fit(g, d * t);
          const Mask better = f.error < error;
          error = select(better, f.error, error);
          s = select(better, t, s);
          p = select(better, t * f.wqx, p);
          a = select(better, t * t * f.wqq, a);
        }
        const F16x total = spread_sum<16>(error);
        const Mask better = total < best_total;
        best_total = select(better, total, best_total);
        best.d = select(better, d, best.d);
        best.s = select(better, s, best.s);
        s0 = s;
        d = round_to_f16(spread_sum<16>(p) * inverse_or_zero(spread_sum<16>(a)));
      }
    }
    return best;
  }
};

inline void quantize_q6_k(const float* x, const float* w, int64_t n, uint8_t* out, float*) {
  auto* blocks = reinterpret_cast<BlockQ6_K*>(out);
  for (int64_t i = 0; i < n / 256; i++) {
    const Groups<16> g(x + 256 * i, w + 256 * i, 16);
    const Q6::Choice c = Q6::fit_block(g);
    alignas(64) float q[16][16], s[16], d[16];
    const F16x inverse = inverse_or_zero(c.d * c.s);
    for (int k = 0; k < 16; k++) store(q[k], Q6::code(g.x[k], inverse) + splat(32.f));
    store(s, c.s);
    store(d, c.d);
    const auto code = [&](int k) { return static_cast<int>(q[k % 16][k / 16]); };
    BlockQ6_K& b = blocks[i];
    b.d = f16_bits(d[0]);
    for (int k = 0; k < 16; k++) b.scales[k] = static_cast<int8_t>(s[k]);
    for (int j = 0; j < 128; j++) {
      const int first = j / 64 * 128 + j % 64;
      b.ql[j] = static_cast<uint8_t>((code(first) & 15) | (code(first + 64) & 15) << 4);
    }
    for (int j = 0; j < 64; j++) {
      int byte = 0;
      for (int part = 0; part < 4; part++) {
        byte |= (code(j / 32 * 128 + part * 32 + j % 32) >> 4) << (2 * part);
      }
      b.qh[j] = static_cast<uint8_t>(byte);
    }
  }
}

}  // namespace grebe::quant::GREBE_ISA
