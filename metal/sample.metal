// The best logits, for choosing a token on the device.
#include <metal_stdlib>

#include "args/sample_args.h"
#include "common.h"

using namespace metal;
using namespace grebe;

constant uint kFirst [[function_constant(0)]];  // 1: candidate i is values[i] itself

// The k best of each run of kCandidates candidates, in descending order, the lowest index first
// among equals; a NaN is below every number. Runs again over what it leaves until one run is left.
//   values   f32[n] logits
//   in       i32[n] candidates, indices into values, or -1
//   out      i32[groups, k]; -1 pads
// A thread has 8 candidates, so a logit leaves memory once however large k is. Grid: [n / 2,048],
// 256 threads.
constant constexpr uint kPerThread = 8;

[[kernel, max_total_threads_per_threadgroup(256)]] void top_k(
    constant TopKArgs& a [[buffer(0)]],
    device const float* values [[buffer(1)]],
    device const int* in [[buffer(2)]],
    device int* out [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup uint2 bests[2][8];
  uint2 mine[kPerThread];  // key, index into values; key 0: none
#pragma unroll
  for (uint i = 0; i < kPerThread; i++) {
    const uint c = (group * kPerThread + i) * 256 + thread_index;
    mine[i] = uint2(0, 0xffffffffu);
    if (c >= a.n) continue;
    const int index = kFirst != 0 ? int(c) : in[c];
    if (index >= 0) mine[i] = uint2(order_key(values[index]), uint(index));
  }
  uint2 last = uint2(0xffffffffu, 0);
  bool any = true;
  for (uint k = 0; k < a.k; k++) {
    uint2 best = uint2(0, 0xffffffffu);
#pragma unroll
    for (uint i = 0; i < kPerThread; i++) {
      const bool follows = mine[i].x < last.x || (mine[i].x == last.x && mine[i].y > last.y);
      const bool better = mine[i].x > best.x || (mine[i].x == best.x && mine[i].y < best.y);
      if (follows && better && mine[i].x != 0) best = mine[i];
    }
    best = simd_best(best.x, best.y);
    // Two sets in turn: a SIMD-group may still read the last choice while another is ahead.
    threadgroup uint2* turn = bests[k & 1];
    if (lane == 0) turn[simd_index] = best;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint2 other = lane < 8 ? turn[lane] : uint2(0, 0xffffffffu);
    best = simd_best(other.x, other.y);
    any = any && best.x != 0;
    if (thread_index == 0) out[group * a.k + k] = any ? int(best.y) : -1;
    last = best;
  }
}
