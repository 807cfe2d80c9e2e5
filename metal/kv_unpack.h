// A cache row (csrc/backend/rows.h) as floats, eight channels at a time.
#pragma once

#include "formats.h"
#include "inline.h"

// KvRowFormat::Kind
constant constexpr uint kKvF32 = 0;
constant constexpr uint kKvPackedBf16 = 1;

/// Eight channels of a row: values * scale. The scale is a power of two; applying it to a sum of
/// products instead of to eight values saves most of the multiplications.
struct KvChunk {
  float4 lo, hi;
  float scale;
};

/// E4M3 codes in the bytes 0 and 2 -> two halves of 2^-8 times their values: the fields of both
/// formats line up but for the bias (7 and 15), subnormals included, so this is exact. Code 0x7f
/// is not told apart: rows hold it only under a scale that is NaN.
static inline half2 e4m3_pair(uint codes) {
  return as_type<half2>((codes & 0x00800080u) << 8 | (codes & 0x007f007fu) << 7);
}
static inline float4 e4m3_four(uint codes) {
  const half2 even = e4m3_pair(codes), odd = e4m3_pair(codes >> 8);
  return float4(float(even.x), float(odd.x), float(even.y), float(odd.y));
}

/// Channels [channel, channel + 8) of a row, channel a multiple of 8. Rows are aligned to 8 bytes.
GREBE_INLINE KvChunk
kv_chunk(device const uchar* row, uint channel, uint kind, uint head_dim, uint rope_dim) {
  KvChunk out;
  out.scale = 1.f;
  const uint nope = head_dim - rope_dim;
  if (kind != kKvF32 && channel < nope) {
    const uint2 codes = *(device const uint2*)(row + channel);
    const uint scales = nope + rope_dim * (kind == kKvPackedBf16 ? 2 : 4);
    const uint e = row[scales + channel / 64];
    // 2^(e - 127 + 8). Scales above 2^119 belong to rows that are not finite; for those and for
    // the code 255 it is NaN.
    out.scale = as_type<float>(e > 246 ? 0x7fc00000u : (e + 8) << 23);
    out.lo = e4m3_four(codes.x);
    out.hi = e4m3_four(codes.y);
  } else if (kind == kKvPackedBf16) {
    device const uint2* p = (device const uint2*)(row + nope + (channel - nope) * 2);
    const uint2 a = p[0], b = p[1];
    out.lo = as_type<float4>(uint4(a.x << 16, a.x & 0xffff0000u, a.y << 16, a.y & 0xffff0000u));
    out.hi = as_type<float4>(uint4(b.x << 16, b.x & 0xffff0000u, b.y << 16, b.y & 0xffff0000u));
  } else {
    const uint at = kind == kKvF32 ? channel * 4 : nope + (channel - nope) * 4;
    device const float2* p = (device const float2*)(row + at);
    out.lo = float4(p[0], p[1]);
    out.hi = float4(p[2], p[3]);
  }
  return out;
}
