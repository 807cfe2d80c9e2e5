// Root mean square norms that are not part of another kernel.
#include <metal_stdlib>

#include "args/norm_args.h"
#include "common.h"

using namespace metal;
using namespace grebe;

// x = x / sqrt(mean(x^2) + eps) * weight, in place. x f32[n, width], weight f32[width]. The row is
// read twice, the second time from cache. Grid: [n].
[[kernel, max_total_threads_per_threadgroup(1024)]] void rms_norm(
    constant RmsNormArgs& a [[buffer(0)]],
    device float* x [[buffer(1)]],
    device const float* weight [[buffer(2)]],
    uint i_row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint n_threads [[threads_per_threadgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint n_simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float sums[32];
  device float* row = x + ulong(i_row) * a.width;
  float squares = 0;
  for (uint c = thread_index; c < a.width; c += n_threads) squares += row[c] * row[c];
  const float total = threadgroup_sum(squares, sums, simd_index, n_simds, lane);
  const float factor = 1.f / sqrt(total / float(a.width) + a.eps);
  for (uint c = thread_index; c < a.width; c += n_threads) row[c] = row[c] * factor * weight[c];
}

// Query heads [V4 4.6.2]: normalised without a weight, then the last 2 half_dim channels rotated in
// pairs. q f32[n, n_heads, head_dim] in place, cos and sin f32[n, half_dim]. A SIMD-group has a
// head, a lane four channels at a time: two pairs. Grid: [heads of all tokens / 8], 256 threads.
[[kernel, max_total_threads_per_threadgroup(256)]] void q_norm_rope(
    constant QNormRopeArgs& a [[buffer(0)]],
    device float* q [[buffer(1)]],
    device const float* cos_table [[buffer(2)]],
    device const float* sin_table [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint i = group * 8 + simd_index;
  if (i >= a.n_vectors) return;
  device float4* head = (device float4*)(q + ulong(i) * a.head_dim);
  const uint n4 = a.head_dim / 4, plain4 = (a.head_dim - 2 * a.half_dim) / 4;
  device const float* cos_row = cos_table + ulong(i / a.n_heads) * a.half_dim;
  device const float* sin_row = sin_table + ulong(i / a.n_heads) * a.half_dim;
  float squares = 0;
  for (uint c = lane; c < n4; c += 32) squares += dot(head[c], head[c]);
  const float factor = 1.f / sqrt(simd_sum(squares) / float(a.head_dim) + a.eps);
  for (uint c = lane; c < n4; c += 32) {
    float4 v = head[c] * factor;
    if (c >= plain4) {
      const uint p = (c - plain4) * 2;
      const float2 cs = float2(cos_row[p], cos_row[p + 1]), sn = float2(sin_row[p], sin_row[p + 1]);
      const float2 even = v.xz * cs - v.yw * sn, odd = v.xz * sn + v.yw * cs;
      v = float4(even.x, odd.x, even.y, odd.y);
    }
    head[c] = v;
  }
}
