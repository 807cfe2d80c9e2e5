// The router [V4 4.10.1-3] for one token, by one SIMD-group. In a header: with few tokens the
// experts' kernel routes on the way.
#pragma once

#include <metal_stdlib>

#include "args/route_args.h"
#include "common.h"

/// An expert's weight before normalisation.
static inline float route_score(float logit) { return metal::sqrt(softplus(logit)); }

/// Experts of a lane whose keys stay in registers. With more than 32 times as many they are
/// computed again for each choice.
constant constexpr uint kRouteCached = 16;

/// Experts that a token may use: what ModelConfig allows.
constant constexpr uint kRouteMaxUsed = 64;

/// Experts of one token in descending order of score + bias, the lowest index first among equals,
/// and their weights: score alone, normalised. An expert whose score is not a number comes last, so
/// the indices are valid and distinct whatever the logits are.
///   logits, bias  f32[n_experts]
///   chosen        i32[n_used]: the experts; null: chosen by bias
///   cached        n_experts <= 32 * kRouteCached, as a constant
///   experts       i32[n_used] out, weights f32[n_used] out; the SIMD-group may read them at once
static inline void route_token(
    constant grebe::RouteArgs& a,
    device const float* logits,
    device const float* bias,
    device const int* chosen,
    bool cached,
    threadgroup int* experts,
    threadgroup float* weights,
    uint lane) {
  float sum = 0;
  if (chosen) {
    for (uint k = 0; k < a.n_used; k++) {
      const uint e = metal::min(uint(chosen[k]), a.n_experts - 1);
      if (lane == 0) experts[k] = int(e);
      sum += route_score(logits[e]);
    }
  } else {
    uint keys[kRouteCached];
    if (cached) {
      for (uint i = 0; i < kRouteCached; i++) {
        const uint e = lane + 32 * i;
        keys[i] = e < a.n_experts ? order_key(route_score(logits[e]) + bias[e]) : 0;
      }
    }
    uint2 last = uint2(0xffffffffu, 0);
    for (uint k = 0; k < a.n_used; k++) {
      // The best of those after `last`; a lane's experts ascend, so its first best is its lowest.
      uint2 best = uint2(0, 0);
      if (cached) {
        for (uint i = 0; i < kRouteCached; i++) {
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
      if (lane == 0) experts[k] = int(last.y);
      sum += route_score(logits[last.y]);
    }
  }
  metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
  for (uint k = lane; k < a.n_used; k += 32)
    weights[k] = route_score(logits[experts[k]]) / sum * a.scale;
  metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
}
