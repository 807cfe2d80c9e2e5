// What both attention kernels share: which row a query sees at which address, and how a query is
// loaded.
#pragma once

#include <metal_stdlib>

#include "args/attention_args.h"
#include "kv_unpack.h"

constant uint kKvKind [[function_constant(0)]];
constant uint kHeadDim [[function_constant(1)]];  // a multiple of 16
constant uint kRopeDim [[function_constant(2)]];  // a multiple of 16; the last channels
constant uint kNormQ [[function_constant(3)]];    // q is raw: normalise and rotate while loading

constant constexpr float kLog2E = 1.44269504f;

/// Address of row r of a query's list; 0 where the list is padded.
static inline ulong row_address(
    constant grebe::AttentionArgs& args,
    device const grebe::AttentionSource* source,
    uint i_query,
    uint n_visible,
    uint r) {
  const uint first = source->pos, pos = first + i_query;
  const uint n_raw = metal::min(args.window_size, pos + 1);
  if (r < n_raw) {
    const uint p = pos + 1 - n_raw + r;
    const bool old = p < first;
    const uint slot = old ? p % source->ring_rows : p - first;
    return (old ? source->ring_at : source->new_rows_at) + ulong(slot) * args.row_bytes;
  }
  uint s = r - n_raw;
  if (source->selected_at != 0) {
    device const uint* selected = (device const uint*)(source->selected_at);
    s = selected[ulong(i_query) * args.top_k + s];
    if (s >= n_visible) return 0;  // the padding is -1
  }
  device const ulong* blocks = (device const ulong*)(source->blocks_at);
  return blocks[s / args.rows_per_block] + source->block_offset +
         ulong(s % args.rows_per_block) * args.row_bytes;
}

/// One head of a query, times `scale`: chunk j of a lane is the channels from (32 j + lane) * 8, in
/// out[2 j] and out[2 j + 1]; zero beyond kHeadDim. cos and sin are those of the query's position.
/// Called by whole SIMD-groups [V4 4.6.2].
template <uint NC>
GREBE_INLINE void load_query(
    device const float* q,
    device const float* cos,
    device const float* sin,
    float eps,
    float scale,
    uint lane,
    thread float4* out) {
  float sum = 0.f;
#pragma unroll
  for (uint j = 0; j < NC; j++) {
    const uint channel = (32 * j + lane) * 8;
    float4 lo = 0.f, hi = 0.f;
    if (channel < kHeadDim) {
      device const float4* p = (device const float4*)(q + channel);
      lo = p[0];
      hi = p[1];
    }
    sum += metal::dot(lo, lo) + metal::dot(hi, hi);
    out[2 * j] = lo;
    out[2 * j + 1] = hi;
  }
  if (kNormQ != 0) {
    scale *= 1.f / metal::sqrt(metal::simd_sum(sum) / float(kHeadDim) + eps);
  }
  const uint nope = kHeadDim - kRopeDim;
#pragma unroll
  for (uint j = 0; j < NC; j++) {
    const uint channel = (32 * j + lane) * 8;
    float4 lo = out[2 * j] * scale, hi = out[2 * j + 1] * scale;
    if (kNormQ != 0 && kRopeDim != 0 && channel >= nope && channel < kHeadDim) {
      const uint i = (channel - nope) / 2;
      const float4 c = float4(cos[i], cos[i + 1], cos[i + 2], cos[i + 3]);
      const float4 s = float4(sin[i], sin[i + 1], sin[i + 2], sin[i + 3]);
      lo = float4(
          lo.x * c.x - lo.y * s.x,
          lo.x * s.x + lo.y * c.x,
          lo.z * c.y - lo.w * s.y,
          lo.z * s.y + lo.w * c.y);
      hi = float4(
          hi.x * c.z - hi.y * s.z,
          hi.x * s.z + hi.y * c.z,
          hi.z * c.w - hi.w * s.w,
          hi.z * s.w + hi.w * c.w);
    }
    out[2 * j] = lo;
    out[2 * j + 1] = hi;
  }
}

/// Channels (channel, channel + 1) of an output head in their final form: the inverse rotation on
/// the rotary ones [V4 4.6.6].
static inline float2 unrotate(
    float2 x, uint channel, device const float* cos, device const float* sin) {
  const uint nope = kHeadDim - kRopeDim;
  if (kRopeDim == 0 || channel < nope) return x;
  const float c = cos[(channel - nope) / 2], s = sin[(channel - nope) / 2];
  return float2(x.x * c + x.y * s, x.y * c - x.x * s);
}
