// IQ2_XXS, IQ2_S, IQ3_XXS: magnitudes from a table of grid vectors, signs, a 4-bit scale s of the
// group and d of the block: w = d (s + 1/2) kStep grid sign.
//
// For a scale t the error of eight weights with grid entry g is sum w a^2 + t (t A_g - 2 B_g),
// a the magnitudes, A_g = sum w g^2, B_g = sum w a g. A and B do not depend on t, so they are made
// once for every entry, and the best entry for any t is a pass of one product, one difference and
// one minimum an entry. Every entry is looked at for every scale: there is no neighbour list and no
// rounding to the grid.
//
// Two types store only seven of eight signs; the eighth makes the number of minuses even. Where the
// weights have an odd number, one of them gets the wrong sign: the one that costs least with that
// entry, B_g - 2 min w a g in place of B_g.
#pragma once

#include "quant/dequant.h"
#include "quant/quantize_groups.h"

namespace grebe::quant::GREBE_ISA {

struct GridIQ2_XXS {
  using Block = BlockIQ2_XXS;
  static constexpr int kEntries = 256, kHalves = 1, kVectors = 4;
  static constexpr bool kParity = true;
  static constexpr float kStep = 0.25f, kTop = 43.f;
  static float value(int entry, int i) { return kGridValues2[kGridIQ2_XXS[entry] >> (2 * i) & 3]; }
};

struct GridIQ2_S {
  using Block = BlockIQ2_S;
  static constexpr int kEntries = 1024, kHalves = 1, kVectors = 2;
  static constexpr bool kParity = false;
  static constexpr float kStep = 0.25f, kTop = 43.f;
  static float value(int entry, int i) { return kGridValues2[kGridIQ2_S[entry] >> (2 * i) & 3]; }
};

struct GridIQ3_XXS {
  using Block = BlockIQ3_XXS;
  static constexpr int kEntries = 256, kHalves = 2, kVectors = 4;
  static constexpr bool kParity = true;
  static constexpr float kStep = 0.5f, kTop = 62.f;
  static float value(int entry, int i) { return kGridValues3[kGridIQ3_XXS[entry] >> (3 * i) & 7]; }
};

/// One block of 256 as 32 vectors of eight; a vector is one grid entry, or two halves of four.
template <class Type>
class GridBlock {
 public:
  static constexpr int kN = Type::kEntries, kHalves = Type::kHalves, kDims = 8 / kHalves;
  static constexpr int kGroups = 32 / Type::kVectors;
  static constexpr int kTables = kHalves == 2 ? 3 : 2;  ///< A, 2B and, for halves, 2B flipped
  static_assert(32 * kHalves * kTables * kN <= 2 * 32 * 1024);

  explicit GridBlock(float* scratch) : tables_(scratch), grid_(grid()) {}

  void quantize(const float* x, const float* w, typename Type::Block& out) {
    prepare(x, w);
    float d_most = 0;
    for (int g = 0; g < kGroups; g++) {
      ideal_[g] = fit_group(g);
      if (ideal_[g] > d_most) d_most = ideal_[g];
    }
    d_most /= 15.5f * Type::kStep;
    float d = best_start(d_most);
    int s[kGroups];
    for (int g = 0; g < kGroups; g++) s[g] = nearest(g, d);
    float best_cost = kWorst;
    float best_d = 0;
    int best_s[kGroups] = {};
    for (int round = 0; round < 2; round++) {
      float cost = 0;
      for (int g = 0; g < kGroups; g++) cost += fit_scale(g, d, s[g]);
      if (cost < best_cost) {
        best_cost = cost;
        best_d = d;
        for (int g = 0; g < kGroups; g++) best_s[g] = s[g];
      }
      if (round == 0) d = refit(d, s);
    }
    pack(best_d, best_s, out);
  }

 private:
  struct Grid {
    alignas(64) float value[kDims][kN];
    alignas(64) float square[kDims][kN];
  };
  struct Pick {
    int entry[kHalves];
    int flip;  ///< which of the eight has the wrong sign; -1: none
    float a, b;
  };

  static const Grid& grid() {
    static const Grid g = [] {
      Grid made;
      for (int i = 0; i < kDims; i++) {
        for (int e = 0; e < kN; e++) {
          made.value[i][e] = Type::value(e, i);
          made.square[i][e] = made.value[i][e] * made.value[i][e];
        }
      }
      return made;
    }();
    return g;
  }

  static float f16(float x) {
    alignas(64) float t[16];
    store(t, round_to_f16(splat(x)));
    return t[0];
  }

  float* table(int v, int half, int which) {
    return tables_ + ((v * kHalves + half) * kTables + which) * kN;
  }

  void prepare(const float* x, const float* w) {
    for (int v = 0; v < 32; v++) {
      uint32_t minus = 0;
      for (int i = 0; i < 8; i++) {
        const float value = x[8 * v + i];
        if (value < 0) minus |= 1u << i;
        magnitude_[8 * v + i] = value < 0 ? -value : value;
      }
      minus_[v] = minus;
      uint32_t parity = minus ^ minus >> 4;
      parity ^= parity >> 2;
      parity ^= parity >> 1;
      odd_[v] = Type::kParity && (parity & 1);
      for (int h = 0; h < kHalves; h++) {
        const int first = 8 * v + kDims * h;
        F16x wk[kDims], wa[kDims];
        for (int i = 0; i < kDims; i++) {
          weighted_[first + i] = w[first + i] * magnitude_[first + i];
          wk[i] = splat(w[first + i]);
          wa[i] = splat(weighted_[first + i]);
        }
        float *const ta = table(v, h, 0), *const tb = table(v, h, 1);
        float* const tf = kHalves == 2 ? table(v, h, 2) : tb;  // flipped
        for (int e = 0; e < kN; e += 16) {
          F16x a = splat(0.f), b = splat(0.f), least = splat(kWorst);
          for (int i = 0; i < kDims; i++) {
            const F16x product = wa[i] * load(grid_.value[i] + e);
            a = a + wk[i] * load(grid_.square[i] + e);
            b = b + product;
            if constexpr (Type::kParity) least = min(least, product);
          }
          store(ta + e, a);
          b = b + b;
          if (kHalves == 2 || !odd_[v]) store(tb + e, b);
          if (odd_[v]) store(tf + e, b - splat(4.f) * least);
        }
      }
    }
  }

  /// min over entries of t A - 2B, for kCount values of t.
  template <int kCount>
  static void least(const float* a, const float* b, const float* t, float* out) {
    F16x scale[kCount], best[kCount];
    for (int c = 0; c < kCount; c++) {
      scale[c] = splat(t[c]);
      best[c] = splat(kWorst);
    }
    for (int e = 0; e < kN; e += 16) {
      const F16x ae = load(a + e), be = load(b + e);
      for (int c = 0; c < kCount; c++) best[c] = min(best[c], scale[c] * ae - be);
    }
    for (int c = 0; c < kCount; c++) {
      alignas(64) float m[16];
      store(m, best[c]);
      for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; i++) m[i] = m[i] < m[i + width] ? m[i] : m[i + width];
      }
      out[c] = m[0];
    }
  }

  /// Adds the costs of the vectors of a group at each t, without the constant sum w a^2.
  template <int kCount>
  void group_cost(int g, const float* t, float* cost) {
    for (int c = 0; c < kCount; c++) cost[c] = 0;
    for (int v = g * Type::kVectors; v < (g + 1) * Type::kVectors; v++) {
      float m[kHalves][kCount], f[kHalves][kCount];
      for (int h = 0; h < kHalves; h++) {
        least<kCount>(table(v, h, 0), table(v, h, 1), t, m[h]);
        if (kHalves == 2 && odd_[v]) least<kCount>(table(v, h, 0), table(v, h, 2), t, f[h]);
      }
      for (int c = 0; c < kCount; c++) {
        float best = m[0][c];
        if constexpr (kHalves == 2) {
          best = m[0][c] + m[1][c];
          if (odd_[v]) {
            const float one = f[0][c] + m[1][c], two = m[0][c] + f[1][c];
            best = one < two ? one : two;
          }
        }
        cost[c] += t[c] * best;
      }
    }
  }

  static float least_entry(const float* a, const float* b, float t, int& entry) {
    F16x best = splat(kWorst), where = splat(0.f);
    const F16x scale = splat(t);
    for (int e = 0; e < kN; e += 16) {
      const F16x cost = scale * load(a + e) - load(b + e);
      const Mask better = cost < best;
      best = select(better, cost, best);
      where = select(better, splat(static_cast<float>(e)), where);
    }
    alignas(64) float m[16], at[16];
    store(m, best);
    store(at, where);
    int lane = 0;
    for (int i = 1; i < 16; i++) {
      if (m[i] < m[lane]) lane = i;
    }
    entry = static_cast<int>(at[lane]) + lane;
    return m[lane];
  }

  Pick pick(int v, float t) {
    Pick p;
    p.flip = -1;
    p.a = p.b = 0;
    int flipped_half = odd_[v] ? 0 : -1;
    if constexpr (kHalves == 1) {
      least_entry(table(v, 0, 0), table(v, 0, 1), t, p.entry[0]);
    } else {
      float m[2], f[2] = {};
      int other[2] = {};
      for (int h = 0; h < 2; h++) {
        m[h] = least_entry(table(v, h, 0), table(v, h, 1), t, p.entry[h]);
        if (odd_[v]) f[h] = least_entry(table(v, h, 0), table(v, h, 2), t, other[h]);
      }
      if (odd_[v]) {
        flipped_half = f[0] + m[1] <= m[0] + f[1] ? 0 : 1;
        p.entry[flipped_half] = other[flipped_half];
      }
    }
    for (int h = 0; h < kHalves; h++) {
      const int which = kHalves == 2 && h == flipped_half ? 2 : 1;
      p.a += table(v, h, 0)[p.entry[h]];
      p.b += 0.5f * table(v, h, which)[p.entry[h]];
    }
    if (flipped_half >= 0) {
      float least_product = kWorst;
      for (int i = 0; i < kDims; i++) {
        const int k = kDims * flipped_half + i;
        const float product = weighted_[8 * v + k] * grid_.value[i][p.entry[flipped_half]];
        if (product < least_product) {
          least_product = product;
          p.flip = k;
        }
      }
    }
    return p;
  }

  /// The best scale of a group by itself: candidates by ratio, then least squares.
  float fit_group(int g) {
    constexpr int kSize = 8 * Type::kVectors, kCandidates = 8;
    float amax = 0;
    for (int k = g * kSize; k < (g + 1) * kSize; k++) {
      if (magnitude_[k] > amax) amax = magnitude_[k];
    }
    if (amax == 0) return 0;
    float t[kCandidates], cost[kCandidates];
    float ratio = 1.1f;
    for (int c = 0; c < kCandidates; c++) {
      t[c] = amax * ratio / Type::kTop;
      ratio *= 0.87f;
    }
    for (int c = 0; c < kCandidates; c += 4) group_cost<4>(g, t + c, cost + c);
    int best = 0;
    for (int c = 1; c < kCandidates; c++) {
      if (cost[c] < cost[best]) best = c;
    }
    float a = 0, b = 0;
    for (int v = g * Type::kVectors; v < (g + 1) * Type::kVectors; v++) {
      const Pick p = pick(v, t[best]);
      a += p.a;
      b += p.b;
    }
    return a > 0 && b > 0 ? b / a : t[best];
  }

  /// The integer that brings the scale of a group nearest to its best.
  int nearest(int g, float d) const {
    const float at = d > 0 ? ideal_[g] / (d * Type::kStep) - 0.5f : 0.f;
    return at < 0 ? 0 : at > 15 ? 15 : static_cast<int>(at + 0.5f);
  }

  static float multiple(int s) { return Type::kStep * (static_cast<float>(s) + 0.5f); }

  /// d at which the nearest integers do best, of some below the one that serves the largest scale.
  float best_start(float d_most) {
    constexpr int kShares = 6;
    float d[kShares], total[kShares] = {};
    for (int c = 0; c < kShares; c++) d[c] = f16(d_most * (1.f - 0.03f * static_cast<float>(c)));
    for (int g = 0; g < kGroups; g++) {
      float t[kShares], cost[kShares];
      for (int c = 0; c < kShares; c++) t[c] = d[c] * multiple(nearest(g, d[c]));
      for (int c = 0; c < kShares; c += 3) group_cost<3>(g, t + c, cost + c);
      for (int c = 0; c < kShares; c++) total[c] += cost[c];
    }
    int best = 0;
    for (int c = 1; c < kShares; c++) {
      if (total[c] < total[best]) best = c;
    }
    return d[best];
  }

  /// Leaves in s the best integer within one of it, and returns its cost.
  float fit_scale(int g, float d, int& s) {
    const int first = s > 0 ? (s < 15 ? s - 1 : 13) : 0;
    float t[3], cost[3];
    for (int c = 0; c < 3; c++) t[c] = d * multiple(first + c);
    group_cost<3>(g, t, cost);
    int best = 0;
    for (int c = 1; c < 3; c++) {
      if (cost[c] < cost[best]) best = c;
    }
    s = first + best;
    return cost[best];
  }

  /// d by least squares for the entries that these scales choose.
  float refit(float d, const int* s) {
    float num = 0, den = 0;
    for (int v = 0; v < 32; v++) {
      const float m = multiple(s[v / Type::kVectors]);
      const Pick p = pick(v, d * m);
      num += m * p.b;
      den += m * m * p.a;
    }
    return den > 0 ? f16(num / den) : 0.f;
  }

  uint32_t signs(int v, const Pick& p) const {
    return p.flip < 0 ? minus_[v] : minus_[v] ^ 1u << p.flip;
  }

  void pack(float d, const int* s, typename Type::Block& out) {
    out.d = f16_bits(d);
    const auto picked = [&](int v) { return pick(v, d * multiple(s[v / Type::kVectors])); };
    if constexpr (Type::kParity) {
      for (int g = 0; g < 8; g++) {
        uint32_t bits = static_cast<uint32_t>(s[g]) << 28;
        for (int j = 0; j < 4; j++) {
          const int v = 4 * g + j;
          const Pick p = picked(v);
          bits |= (signs(v, p) & 127) << (7 * j);
          if constexpr (kHalves == 1) {
            out.groups[8 * g + j] = static_cast<uint8_t>(p.entry[0]);
          } else {
            out.q[2 * v] = static_cast<uint8_t>(p.entry[0]);
            out.q[2 * v + 1] = static_cast<uint8_t>(p.entry[1]);
          }
        }
        if constexpr (kHalves == 1) {
          std::memcpy(out.groups + 8 * g + 4, &bits, 4);
        } else {
          std::memcpy(out.signs_scales + 4 * g, &bits, 4);
        }
      }
    } else {
      for (int i = 0; i < 8; i++) {
        out.scales[i] = static_cast<uint8_t>(s[2 * i] | s[2 * i + 1] << 4);
        out.qh[i] = 0;
      }
      for (int v = 0; v < 32; v++) {
        const Pick p = picked(v);
        out.q[v] = static_cast<uint8_t>(p.entry[0] & 255);
        out.qh[v / 4] = static_cast<uint8_t>(out.qh[v / 4] | (p.entry[0] >> 8) << (v % 4 * 2));
        out.signs[v] = static_cast<uint8_t>(minus_[v]);
      }
    }
  }

  float* tables_;
  const Grid& grid_;
  float magnitude_[256], weighted_[256];  ///< a and w a
  uint32_t minus_[32];
  bool odd_[32];
  float ideal_[kGroups];
};

template <class Type>
void quantize_grid(const float* x, const float* w, int64_t n, uint8_t* out, float* scratch) {
  auto* blocks = reinterpret_cast<typename Type::Block*>(out);
  GridBlock<Type> block(scratch);
  for (int64_t i = 0; i < n / 256; i++) block.quantize(x + 256 * i, w + 256 * i, blocks[i]);
}

}  // namespace grebe::quant::GREBE_ISA
