// The router [V4 4.10.1-3]: which experts a token goes to, by one SIMD-group.
#pragma once

#include <metal_stdlib>

using namespace metal;

/// Experts that route_token() can choose from: 16 a lane.
enum : uint { kRouterMaxExperts = 512 };

/// sqrt(softplus(x)).
static inline float router_score(float x) {
  // log(1 + e) = 2 atanh(e / (2 + e)), e <= 1: eight terms are exact to a float, small e lose
  // nothing, and a NaN goes through.
  const float e = precise::exp(-fabs(x)), s = e / (2.f + e), q = s * s;
  float p = 1.f / 15;
  p = p * q + 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  p = p * q + 1.f;
  return precise::sqrt(max(x, 0.f) + 2.f * s * p);
}

/// A number whose order is that of floats, with NaN below all of them; never 0.
static inline uint float_order(float x) {
  const uint u = as_type<uint>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 1;
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/// Lane k < n_used returns the k-th of the experts with the highest score + bias; the lowest expert
/// wins a tie. Any logits give distinct experts below n_experts (n_used <= n_experts,
/// n_experts <= kRouterMaxExperts). The bias chooses but does not weigh [4.10.2].
static inline uint choose_experts(
    device const float* logits, device const float* bias, uint n_experts, uint n_used, uint lane) {
  uint order[16];  // 0: absent or taken
  for (uint i = 0; i < 16; i++) {
    const uint e = i * 32 + lane;
    order[i] = 0;
    if (e < n_experts) order[i] = float_order(router_score(logits[e]) + bias[e]);
  }
  uint mine = 0;
  for (uint k = 0; k < n_used; k++) {
    uint best = 0, expert = 0;
    for (uint i = 0; i < 16; i++) {
      if (order[i] > best) {
        best = order[i];
        expert = i * 32 + lane;
      }
    }
    const uint highest = simd_max(best);
    expert = simd_min(best == highest ? expert : 0xffffffffu);
    for (uint i = 0; i < 16; i++) {
      if (i * 32 + lane == expert) order[i] = 0;
    }
    if (lane == k) mine = expert;
  }
  return mine;
}

/// Mixing weight of the lane's expert: score / (sum of the scores of the token's experts) * scale.
/// 0 in lanes from n_used on. All lanes of a SIMD-group call it.
static inline float mix_weight(
    device const float* logits, uint expert, uint n_used, float scale, uint lane) {
  const float score = lane < n_used ? router_score(logits[expert]) : 0.f;
  const float sum = simd_sum(score);
  return lane < n_used ? score / sum * scale : 0.f;
}
