// What kernels of several families share: sums over a threadgroup, the best of a SIMD-group, and
// functions that Metal's library lacks.
#pragma once

#include <metal_stdlib>

/// Sum over the threadgroup, the same value in every thread. `sums` holds n_groups floats, one of
/// each SIMD-group; called by all threads. A second call with the same memory needs a barrier
/// before it.
static inline float threadgroup_sum(
    float value, threadgroup float* sums, uint i_group, uint n_groups, uint lane) {
  const float sum = metal::simd_sum(value);
  if (lane == 0) sums[i_group] = sum;
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  float total = 0;
  for (uint i = 0; i < n_groups; i++) total += sums[i];
  return total;
}

/// Unsigned integers in the order of the floats; -0 equals 0. NaN is 1, below every number, and 0
/// is left for "none".
static inline uint order_key(float x) {
  if (metal::isnan(x)) return 1;
  const uint u = as_type<uint>(x + 0.f);
  return u ^ (u >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

/// The largest key of the SIMD-group and its lowest index: (key, index) in every lane.
static inline uint2 simd_best(uint key, uint index) {
  const uint best = metal::simd_max(key);
  return uint2(best, metal::simd_min(key == best ? index : 0xffffffffu));
}

static inline float sigmoid(float x) { return 1.f / (1.f + metal::exp(-x)); }

/// log(1 + exp(x)). log(1 + t) is taken as 2 atanh(t / (2 + t)), a series in z^2 <= 1/9, so small t
/// keep their digits.
static inline float softplus(float x) {
  const float t = metal::exp(-metal::fabs(x)), z = t / (2.f + t), z2 = z * z;
  float sum = 1.f / 17.f;
  for (int k = 15; k >= 1; k -= 2) sum = metal::fma(sum, z2, 1.f / float(k));
  return (x > 0 ? x : x == x ? 0.f : x) + 2.f * z * sum;
}
