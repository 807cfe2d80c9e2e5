// The router [V4 4.10.1-3] for one token, by one SIMD-group. In a header: with few tokens the
// experts' kernel routes on the way.
#pragma once

#include <metal_stdlib>

#include "args/route_args.h"
#include "common.h"
#include "inline.h"

/// An expert's weight before normalisation.
static inline float route_score(float logit) { return metal::sqrt(softplus(logit)); }

/// Experts of a lane whose keys stay in registers. With more than 32 times as many they are
/// computed again for each choice.
constant constexpr uint kRouteCached = 16;

/// Experts that a token may use: what ModelConfig allows. Lane k has choices k and k + 32.
constant constexpr uint kRouteMaxUsed = 64;

/// Experts of one token in descending order of score + bias, the lowest index first among equals,
/// and their weights: score alone, normalised. An expert whose score is not a number comes last, so
/// the indices are valid and distinct whatever the logits are.
///   logits, bias  f32[n_experts]
///   chosen        i32[n_used]: the experts; null: chosen by bias
///   cached        n_experts <= 32 * kRouteCached, as a constant
///   experts       i32[n_used] out, weights f32[n_used] out; the SIMD-group may read them at once
GREBE_INLINE void route_token(
    constant grebe::RouteArgs& a,
    device const float* logits,
    device const float* bias,
    device const int* chosen,
    bool cached,
    threadgroup int* experts,
    threadgroup float* weights,
    uint lane) {
  uint pick0 = 0, pick1 = 0;
  if (chosen) {
    if (lane < a.n_used) pick0 = metal::min(uint(chosen[lane]), a.n_experts - 1);
    if (lane + 32 < a.n_used) pick1 = metal::min(uint(chosen[lane + 32]), a.n_experts - 1);
  } else {
    uint keys[kRouteCached];
    if (cached) {
#pragma unroll
      for (uint i = 0; i < kRouteCached; i++) {
        if (32 * i >= a.n_experts) break;
        const uint e = lane + 32 * i;
        keys[i] = e < a.n_experts ? order_key(route_score(logits[e]) + bias[e]) : 0;
      }
    }
    uint2 last = uint2(0xffffffffu, 0);
    for (uint k = 0; k < a.n_used; k++) {
      // The best of those after `last`; a lane's experts ascend, so its first best is its lowest.
      uint2 best = uint2(0, 0);
      if (cached) {
#pragma unroll
        for (uint i = 0; i < kRouteCached; i++) {
          if (32 * i >= a.n_experts) break;
          const uint e = lane + 32 * i;
          const bool follows = keys[i] < last.x || (keys[i] == last.x && e > last.y);
          if (follows && keys[i] > best.x) best = uint2(keys[i], e);
        }
      } else {
        for (uint e = lane; e < a.n_experts; e += 32) {
          const uint key = order_key(route_score(logits[e]) + bias[e]);
          const bool follows = key < last.x || (key == last.x && e > last.y);
          if (follows && key > best.x) best = uint2(key, e);
        }
      }
      last = simd_best(best.x, best.y);
      if (lane == k) pick0 = last.y;
      if (lane + 32 == k) pick1 = last.y;
    }
  }
  const float score0 = lane < a.n_used ? route_score(logits[pick0]) : 0.f;
  const float score1 = lane + 32 < a.n_used ? route_score(logits[pick1]) : 0.f;
  // In the order of the choices.
  float sum = 0;
  for (uint k = 0; k < a.n_used; k++) {
    sum += metal::simd_shuffle(k < 32 ? score0 : score1, ushort(k % 32));
  }
  if (lane < a.n_used) {
    experts[lane] = int(pick0);
    weights[lane] = score0 / sum * a.scale;
  }
  if (lane + 32 < a.n_used) {
    experts[lane + 32] = int(pick1);
    weights[lane + 32] = score1 / sum * a.scale;
  }
  metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
}
