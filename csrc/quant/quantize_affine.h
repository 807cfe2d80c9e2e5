// Q2_K, Q4_K, Q5_K: groups with a scale and a minimum, w = d s q - dmin m, where s and m are small
// integers of the group and d, dmin belong to the 256 weights.
//
// First every group for itself: (scale, minimum) from ranges clipped more and more, each led by
// least squares to where it settles. Then the block: d and dmin such that the integers fit, the
// integers around their places and the codes for them searched together, d and dmin fitted again to
// what was chosen.
#pragma once

#include "quant/quantize_groups.h"

namespace grebe::quant::GREBE_ISA {

template <int kSize, int kMaxQ, int kMaxScale>
struct Affine {
  static constexpr int kRun = 256 / kSize;      ///< groups of a block: 16 or 8 lanes
  static constexpr int64_t kBatch = 16 / kRun;  ///< blocks side by side
  struct Sums {
    F16x q, qq, qx;
  };
  struct Pair {
    F16x scale, min;
  };

  static F16x code(F16x x, F16x min, F16x inverse) {
    return clamp(round((x + min) * inverse), splat(0.f), splat(kMaxQ));
  }

  static Sums sums(const Groups<kSize>& g, Pair p) {
    const F16x inverse = inverse_or_zero(p.scale);
    Sums s{splat(0.f), splat(0.f), splat(0.f)};
    for (int k = 0; k < kSize; k++) {
      const F16x q = code(g.x[k], p.min, inverse), wq = g.w[k] * q;
      s.q = s.q + wq;
      s.qq = s.qq + wq * q;
      s.qx = s.qx + wq * g.x[k];
    }
    return s;
  }

  static F16x error(const Groups<kSize>& g, Pair p) {
    const F16x inverse = inverse_or_zero(p.scale);
    F16x e = splat(0.f);
    for (int k = 0; k < kSize; k++) {
      const F16x rest = g.x[k] + p.min - p.scale * code(g.x[k], p.min, inverse);
      e = e + g.w[k] * rest * rest;
    }
    return e;
  }

  /// Least squares for given codes; a minimum below zero cannot be stored and becomes zero.
  static Pair solve(const Groups<kSize>& g, const Sums& s, Pair before) {
    const F16x zero = splat(0.f);
    const F16x det = g.sum_w * s.qq - s.q * s.q;
    const Mask sound = zero < det;
    const F16x scale = (g.sum_w * s.qx - s.q * g.sum_wx) / select(sound, det, splat(1.f));
    const F16x min = (scale * s.q - g.sum_wx) / g.sum_w;
    const F16x alone = s.qx * inverse_or_zero(s.qq);
    const Mask no_min = min < zero;
    return {
        select(sound, max(select(no_min, alone, scale), zero), before.scale),
        select(sound, max(min, zero), before.min)};
  }

  /// The best scale and minimum of each group, before they have to be integers.
  static Pair fit_groups(const Groups<kSize>& g) {
    const F16x zero = splat(0.f);
    F16x low = zero, high = g.x[0];
    for (int k = 0; k < kSize; k++) {
      low = min(low, g.x[k]);
      high = max(high, g.x[k]);
    }
    Pair best{zero, zero - low};
    F16x best_error = error(g, best);
    const auto consider = [&](Pair p) {
      for (int round = 0; round < 2; round++) p = solve(g, sums(g, p), p);
      const F16x e = error(g, p);
      const Mask better = e < best_error;
      best_error = select(better, e, best_error);
      best = {select(better, p.scale, best.scale), select(better, p.min, best.min)};
    };
    constexpr float kClips2[] = {1.1f, 1.f, .9f, .8f, .7f, .6f, .5f};
    // Ranges wider than the weights: the codes of FP4 weights are evenly spaced with a step that
    // leaves some of ours unused.
    constexpr float kClips4[] = {1.25f, 1.15f, 1.07f, 1.02f, 1.f, .97f, .94f, .9f, .85f, .78f};
    const float* const clips = kMaxQ < 4 ? kClips2 : kClips4;
    constexpr int kClips = static_cast<int>((kMaxQ < 4 ? sizeof kClips2 : sizeof kClips4) / 4);
    for (int i = 0; i < kClips; i++) {
      const float clip = clips[i];
      const F16x scale = (high - low) * splat(clip / kMaxQ);
      consider({scale, zero - low * splat(clip)});
      if (clip < 1.f) consider({scale, zero - low});
    }
    return best;
  }

  struct Choice {
    F16x d, dmin;  ///< the same in all lanes of a block
    F16x s, m, error;
    Pair pair() const { return {d * s, dmin * m}; }
  };

  /// Integers within one of the given ones.
  static Choice search(const Groups<kSize>& g, F16x d, F16x dmin, F16x s0, F16x m0) {
    Choice best{d, dmin, s0, m0, splat(kWorst)};
    const F16x zero = splat(0.f), top = splat(kMaxScale);
    for (const float ds : {0.f, -1.f, 1.f}) {
      const F16x s = clamp(s0 + splat(ds), zero, top);
      for (const float dm : {0.f, -1.f, 1.f}) {
        const F16x m = clamp(m0 + splat(dm), zero, top);
        const F16x e = error(g, {d * s, dmin * m});
        const Mask better = e < best.error;
        best.error = select(better, e, best.error);
        best.s = select(better, s, best.s);
        best.m = select(better, m, best.m);
      }
    }
    return best;
  }

  /// d and dmin by least squares for the integers and codes of a choice.
  static Pair refit(const Groups<kSize>& g, const Choice& c) {
    const F16x zero = splat(0.f);
    const Sums t = sums(g, c.pair());
    const F16x a = spread_sum<kRun>(c.s * c.s * t.qq), b = spread_sum<kRun>(c.s * c.m * t.q);
    const F16x cc = spread_sum<kRun>(c.m * c.m * g.sum_w);
    const F16x p = spread_sum<kRun>(c.s * t.qx), r = spread_sum<kRun>(c.m * g.sum_wx);
    const F16x det = a * cc - b * b;
    const Mask sound = splat(1e-6f) * a * cc < det;
    const F16x safe = select(sound, det, splat(1.f));
    const F16x d = select(sound, (p * cc - r * b) / safe, (p + c.dmin * b) * inverse_or_zero(a));
    const F16x dmin = select(sound, (p * b - r * a) / safe, c.dmin);
    return {round_to_f16(max(d, zero)), round_to_f16(max(dmin, zero))};
  }

  static Choice fit_blocks(const Groups<kSize>& g) {
    const Pair ideal = fit_groups(g);
    const F16x zero = splat(0.f), top = splat(kMaxScale);
    const F16x d_most = spread_max<kRun>(ideal.scale) * splat(1.f / kMaxScale);
    const F16x dmin_most = spread_max<kRun>(ideal.min) * splat(1.f / kMaxScale);
    Choice best{zero, zero, zero, zero, splat(0.f)};
    F16x best_total = splat(kWorst);
    // Below the largest scale d is finer for the other groups; four bits need that more than six.
    constexpr float kShares4[] = {1.f, .93f, .86f};
    constexpr float kShares6[] = {1.f, .97f, .99f};
    for (const float share : kMaxScale < 16 ? kShares4 : kShares6) {
      F16x d = round_to_f16(d_most * splat(share)), dmin = round_to_f16(dmin_most * splat(share));
      F16x s = clamp(round(ideal.scale * inverse_or_zero(d)), zero, top);
      F16x m = clamp(round(ideal.min * inverse_or_zero(dmin)), zero, top);
      for (int round = 0; round < 3; round++) {
        const Choice c = search(g, d, dmin, s, m);
        const F16x total = spread_sum<kRun>(c.error);
        const Mask better = total < best_total;
        best_total = select(better, total, best_total);
        best.d = select(better, c.d, best.d);
        best.dmin = select(better, c.dmin, best.dmin);
        best.s = select(better, c.s, best.s);
        best.m = select(better, c.m, best.m);
        const Pair next = refit(g, c);
        d = next.scale;
        dmin = next.min;
        s = c.s;
        m = c.m;
      }
    }
    return best;
  }

  /// What is stored, as arrays of small numbers.
  struct Stored {
    alignas(64) float q[kSize][16];
    alignas(64) float d[16], dmin[16], s[16], m[16];
    int code_of(int64_t block, int k) const {  ///< weight k of 256
      return static_cast<int>(q[k % kSize][block * kRun + k / kSize]);
    }
  };

  static void run(const Groups<kSize>& g, Stored& out) {
    const Choice c = fit_blocks(g);
    const Pair p = c.pair();
    const F16x inverse = inverse_or_zero(p.scale);
    for (int k = 0; k < kSize; k++) store(out.q[k], code(g.x[k], p.min, inverse));
    store(out.d, c.d);
    store(out.dmin, c.dmin);
    store(out.s, c.s);
    store(out.m, c.m);
  }
};

inline void quantize_q2_k(const float* x, const float* w, int64_t n, uint8_t* out, float*) {
  using Family = Affine<16, 3, 15>;
  auto* blocks = reinterpret_cast<BlockQ2_K*>(out);
  Family::Stored t;
  for (int64_t i = 0; i < n / 256; i++) {
    Family::run(Groups<16>(x + 256 * i, w + 256 * i, 16), t);
    BlockQ2_K& b = blocks[i];
    b.d = f16_bits(t.d[0]);
    b.dmin = f16_bits(t.dmin[0]);
    for (int g = 0; g < 16; g++) {
      b.scales[g] = static_cast<uint8_t>(static_cast<int>(t.s[g]) | static_cast<int>(t.m[g]) << 4);
    }
    for (int j = 0; j < 64; j++) {
      int byte = 0;
      for (int part = 0; part < 4; part++) {
        byte |= t.code_of(0, j / 32 * 128 + part * 32 + j % 32) << (2 * part);
      }
      b.q[j] = static_cast<uint8_t>(byte);
    }
  }
}

/// Eight 6-bit scales and minima in 12 bytes.
inline void pack_scales_k4(const float* s, const float* m, uint8_t* out) {
  for (int i = 0; i < 4; i++) {
    const int s0 = static_cast<int>(s[i]), s1 = static_cast<int>(s[i + 4]);
    const int m0 = static_cast<int>(m[i]), m1 = static_cast<int>(m[i + 4]);
    out[i] = static_cast<uint8_t>(s0 | (s1 >> 4) << 6);
    out[4 + i] = static_cast<uint8_t>(m0 | (m1 >> 4) << 6);
    out[8 + i] = static_cast<uint8_t>((s1 & 15) | (m1 & 15) << 4);
  }
}

/// Q4_K and, with a fifth bit, Q5_K.
template <class Block, int kMaxQ>
void quantize_k4(const float* x, const float* w, int64_t n, uint8_t* out, float*) {
  using Family = Affine<32, kMaxQ, 63>;
  auto* blocks = reinterpret_cast<Block*>(out);
  typename Family::Stored t;
  for (int64_t first = 0; first < n / 256; first += 2) {
    const int64_t n_blocks = n / 256 - first < 2 ? 1 : 2;
    Family::run(Groups<32>(x + 256 * first, w + 256 * first, 8 * n_blocks), t);
    for (int64_t i = 0; i < n_blocks; i++) {
      Block& b = blocks[first + i];
      b.d = f16_bits(t.d[8 * i]);
      b.dmin = f16_bits(t.dmin[8 * i]);
      pack_scales_k4(t.s + 8 * i, t.m + 8 * i, b.scales);
      for (int j = 0; j < 128; j++) {
        const int low = j / 32 * 64 + j % 32;
        b.q[j] =
            static_cast<uint8_t>((t.code_of(i, low) & 15) | (t.code_of(i, low + 32) & 15) << 4);
      }
      if constexpr (kMaxQ == 31) {
        for (int j = 0; j < 32; j++) {
          int byte = 0;
          for (int bit = 0; bit < 8; bit++) byte |= (t.code_of(i, 32 * bit + j) >> 4) << bit;
          b.qh[j] = static_cast<uint8_t>(byte);
        }
      }
    }
  }
}

}  // namespace grebe::quant::GREBE_ISA
