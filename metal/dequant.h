// Weights of every type as floats: 16 consecutive weights of a row.
//
// The definition of the formats is csrc/quant/blocks.h and dequant.cpp; the floats here are the
// same ones, bit for bit (but for results below 2^-126, which a GPU may flush). Used where a tile
// of weights is laid out for matrix units, and for embeddings; single rows times vectors go through
// lane_weights.h, which reads each byte once.
//
// Blocks have no alignment to speak of: 2 bytes, 1 for MXFP4 and F8. Packed vectors ask for no more
// than that of their elements, and Apple GPUs read four elements of 8, 16 or 32 bits at once from
// any multiple of the element's size.
#pragma once

#include <metal_stdlib>

#include "args/weight_type.h"
#include "formats.h"
#include "inline.h"
#include "tables.h"

using namespace grebe;

// ---- bytes of blocks

/// 4 bytes from an even address.
static inline uint load4(device const uchar* p) {
  const ushort2 u = *(device const packed_ushort2*)p;
  return as_type<uint>(u);
}

/// 8 bytes from an even address.
static inline uint2 load8(device const uchar* p) {
  const ushort4 u = *(device const packed_ushort4*)p;
  return as_type<uint2>(u);
}

/// 8 bytes from any address.
static inline uint2 load8_unaligned(device const uchar* p) {
  const uchar4 low = ((device const packed_uchar4*)p)[0],
               high = ((device const packed_uchar4*)p)[1];
  return uint2(as_type<uint>(low), as_type<uint>(high));
}

/// Four floats from an address that is a multiple of 4.
static inline float4 load_float4(device const float* p) { return *(device const packed_float4*)p; }

static inline float load_half(device const uchar* p) { return float(*(device const half*)p); }

static inline float4 unsigned_bytes(uint u) { return float4(as_type<uchar4>(u)); }
static inline float4 signed_bytes(uint u) { return float4(as_type<char4>(u)); }

// ---- parts of formats

/// Scale and min of group g (32 weights, g < 8) of Q4_K and Q5_K, from the 12 bytes of a block.
static inline uint2 k4_scale_min(device const uchar* s, uint g) {
  const uint i = g & 3;
  if (g < 4) return uint2(s[i] & 63u, s[4 + i] & 63u);
  return uint2((s[8 + i] & 15u) | (s[i] >> 2 & 48u), uint(s[8 + i]) >> 4 | (s[4 + i] >> 2 & 48u));
}

/// Scale of group g (16 weights, g < 16) of Q3_K, from the 12 bytes of a block.
static inline int q3_scale(device const uchar* s, uint g) {
  const uint low = s[g & 7] >> (g >> 3 << 2) & 15u, high = s[8 + (g & 3)] >> (g >> 2 << 1) & 3u;
  return int(low | high << 4) - 32;
}

/// Four values of a 2-bit grid entry (the low or high 8 bits of a table entry) as bytes: 8, 25, 43.
static inline uint grid2_bytes(uint ranks) {
  uint r = ranks & 0xffu;
  r = (r | r << 12) & 0x000f000fu;
  r = (r | r << 6) & 0x03030303u;
  return 0x08080808u + r * 17u + (r >> 1 & 0x01010101u);
}

/// Four values of a 3-bit grid entry as bytes: 4, 12, 20, 28, 36, 44, 52, 62.
static inline uint grid3_bytes(uint ranks) {
  const uint r =
      (ranks & 7u) | (ranks & 0x38u) << 5 | (ranks & 0x1c0u) << 10 | (ranks & 0xe00u) << 15;
  return 0x04040404u + (r << 3) + ((r + 0x01010101u) >> 2 & 0x02020202u);
}

/// Bit 7 of a 7-bit sign code makes the number of set bits even.
static inline uint with_parity(uint code) { return code | (metal::popcount(code) & 1u) << 7; }

/// v with the signs of its elements flipped where a bit of `bits` (0 to 3) is set.
static inline float4 flip_signs(float4 v, uint bits) {
  const uint4 mask = uint4(bits << 31, bits << 30, bits << 29, bits << 28) & 0x80000000u;
  return as_type<float4>(as_type<uint4>(v) ^ mask);
}

/// 2^(e - 128), the scale of MXFP4 values doubled to integers.
static inline float mxfp4_scale(uchar e) {
  return as_type<float>(e < 2 ? 0x00200000u << e : (uint(e) - 1u) << 23);
}

/// Bytes 1 and 3 of `odd` and of `even` as they are made into halves, in the order of the weights.
static inline float4 interleave_halves(uint even, uint odd) {
  const half2 e = as_type<half2>(even), o = as_type<half2>(odd);
  return float4(e.x, o.x, e.y, o.y);
}

/// Four E2M1 codes in the low nibbles of the bytes of u, times 2^-14: as halves they differ from
/// E2M1 in nothing but the exponent's bias. Subnormals become subnormals, which Apple GPUs keep in
/// half precision.
static inline float4 e2m1_scaled(uint u) {
  const uint v = u << 8;
  return interleave_halves(
      (v & 0x07000700u) << 1 | (v & 0x08000800u) << 4,
      (u & 0x07000700u) << 1 | (u & 0x08000800u) << 4);
}

/// Four E4M3 codes times 2^-8, by the same device. NaN codes come out as 480: see has_e4m3_nan().
static inline float4 e4m3_scaled(uint u) {
  const uint v = u << 8;
  return interleave_halves(
      (v & 0x7f007f00u) >> 1 | (v & 0x80008000u), (u & 0x7f007f00u) >> 1 | (u & 0x80008000u));
}

/// Whether one of four codes is NaN (0x7f or 0xff).
static inline bool has_e4m3_nan(uint u) {
  return (((u & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u) != 0;
}

// ---- 16 weights

GREBE_INLINE void dequant16_float(
    uint type, device const uchar* row, uint k, uint n_in, thread float4* w) {
  const uint n = metal::min(n_in - k, 16u);
  if (n == 16) {
    for (uint i = 0; i < 4; i++) {
      if (type == kWeightF32) {
        w[i] = load_float4((device const float*)row + k + 4 * i);
        continue;
      }
      const uint2 u = load8(row + 2 * k + 8 * i);
      w[i] = type == kWeightF16 ? float4(as_type<half4>(u))
                                : float4(
                                      as_type<float>(u.x << 16),
                                      as_type<float>(u.x & 0xffff0000u),
                                      as_type<float>(u.y << 16),
                                      as_type<float>(u.y & 0xffff0000u));
    }
    return;
  }
  for (uint i = 0; i < 16; i++) {
    float v = 0;
    if (i < n) {
      v = type == kWeightF32   ? ((device const float*)row)[k + i]
          : type == kWeightF16 ? float(((device const half*)row)[k + i])
                               : bf16_to_float(((device const ushort*)row)[k + i]);
    }
    w[i / 4][i % 4] = v;
  }
}

// A tile is 128 columns, so 16 aligned weights have one scale.
GREBE_INLINE void dequant16_f8(
    device const uchar* row, device const uchar* scales, uint k, uint n_in, thread float4* w) {
  const float scale = e8m0_to_float(scales[k / 128]);
  const uint n = metal::min(n_in - k, 16u);
  if (n == 16) {
    const uint2 a = load8_unaligned(row + k), b = load8_unaligned(row + k + 8);
    if (!has_e4m3_nan(a.x) && !has_e4m3_nan(a.y) && !has_e4m3_nan(b.x) && !has_e4m3_nan(b.y)) {
      w[0] = scale * (0x1p8f * e4m3_scaled(a.x));
      w[1] = scale * (0x1p8f * e4m3_scaled(a.y));
      w[2] = scale * (0x1p8f * e4m3_scaled(b.x));
      w[3] = scale * (0x1p8f * e4m3_scaled(b.y));
      return;
    }
  }
  for (uint i = 0; i < 16; i++) {
    w[i / 4][i % 4] = i < n ? e4m3_to_float(row[k + i]) * scale : 0.f;
  }
}

GREBE_INLINE void dequant16_q8_0(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 32 * 34;
  const float d = load_half(block);
  for (uint i = 0; i < 2; i++) {
    const uint2 q = load8(block + 2 + (k & 16) + 8 * i);
    w[2 * i] = d * signed_bytes(q.x);
    w[2 * i + 1] = d * signed_bytes(q.y);
  }
}

GREBE_INLINE void dequant16_mxfp4(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 32 * 17;
  const float d = mxfp4_scale(block[0]);
  const uint shift = (k & 16) / 4;
  for (uint i = 0; i < 2; i++) {
    const uint2 q = load8_unaligned(block + 1 + 8 * i) >> shift;
    w[2 * i] = d * (0x1p15f * e2m1_scaled(q.x));
    w[2 * i + 1] = d * (0x1p15f * e2m1_scaled(q.y));
  }
}

GREBE_INLINE void dequant16_q2_k(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 84;
  const uint g = k / 16 & 15;
  const float scale = load_half(block + 80) * float(block[g] & 15);
  const float min = load_half(block + 82) * float(block[g] >> 4);
  for (uint i = 0; i < 2; i++) {
    const uint2 q = load8(block + 16 + (g >> 3) * 32 + (g & 1) * 16 + 8 * i) >> (g & 6);
    w[2 * i] = scale * unsigned_bytes(q.x & 0x03030303u) - min;
    w[2 * i + 1] = scale * unsigned_bytes(q.y & 0x03030303u) - min;
  }
}

GREBE_INLINE void dequant16_q3_k(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 110;
  const uint g = k / 16 & 15;
  const float scale = load_half(block + 108) * float(q3_scale(block + 96, g));
  for (uint i = 0; i < 2; i++) {
    const uint2 low = load8(block + 32 + (g >> 3) * 32 + (g & 1) * 16 + 8 * i) >> (g & 6);
    const uint2 high = load8(block + (g & 1) * 16 + 8 * i) >> (g >> 1);
    const uint2 q = (low & 0x03030303u) | (high & 0x01010101u) << 2;
    w[2 * i] = scale * (unsigned_bytes(q.x) - 4.f);
    w[2 * i + 1] = scale * (unsigned_bytes(q.y) - 4.f);
  }
}

GREBE_INLINE void dequant16_q4_k(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 144;
  const uint g = k / 16 & 15;
  const uint2 s = k4_scale_min(block + 4, g >> 1);
  const float scale = load_half(block) * float(s.x), min = load_half(block + 2) * float(s.y);
  for (uint i = 0; i < 2; i++) {
    const uint2 q = load8(block + 16 + (g >> 2) * 32 + (g & 1) * 16 + 8 * i) >> ((g & 2) * 2);
    w[2 * i] = scale * unsigned_bytes(q.x & 0x0f0f0f0fu) - min;
    w[2 * i + 1] = scale * unsigned_bytes(q.y & 0x0f0f0f0fu) - min;
  }
}

GREBE_INLINE void dequant16_q5_k(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 176;
  const uint g = k / 16 & 15;
  const uint2 s = k4_scale_min(block + 4, g >> 1);
  const float scale = load_half(block) * float(s.x), min = load_half(block + 2) * float(s.y);
  for (uint i = 0; i < 2; i++) {
    const uint2 low = load8(block + 48 + (g >> 2) * 32 + (g & 1) * 16 + 8 * i) >> ((g & 2) * 2);
    const uint2 high = load8(block + 16 + (g & 1) * 16 + 8 * i) >> (g >> 1);
    const uint2 q = (low & 0x0f0f0f0fu) | (high & 0x01010101u) << 4;
    w[2 * i] = scale * unsigned_bytes(q.x) - min;
    w[2 * i + 1] = scale * unsigned_bytes(q.y) - min;
  }
}

GREBE_INLINE void dequant16_q6_k(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 210;
  const uint g = k / 16 & 15;
  const float scale = load_half(block + 208) * float(char(block[192 + g]));
  for (uint i = 0; i < 2; i++) {
    const uint2 low = load8(block + (g >> 3) * 64 + (g & 3) * 16 + 8 * i) >> (g & 4);
    const uint2 high = load8(block + 128 + (g >> 3) * 32 + (g & 1) * 16 + 8 * i) >> (g & 6);
    const uint2 q = (low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4;
    w[2 * i] = scale * (unsigned_bytes(q.x) - 32.f);
    w[2 * i + 1] = scale * (unsigned_bytes(q.y) - 32.f);
  }
}

GREBE_INLINE void dequant16_iq2_xxs(device const uchar* row, uint k, thread float4* w) {
  device const uchar* group = row + k / 256 * 66 + 2 + (k / 32 & 7) * 8;
  const uint first = k / 8 & 2, bits = load4(group + 4);
  const float scale = load_half(row + k / 256 * 66) * 0.125f * float((bits >> 28) * 2 + 1);
  for (uint i = 0; i < 2; i++) {
    const uint entry = kGridIQ2_XXS[group[first + i]];
    const uint signs = with_parity(bits >> (7 * (first + i)) & 127u);
    w[2 * i] = flip_signs(scale * unsigned_bytes(grid2_bytes(entry)), signs);
    w[2 * i + 1] = flip_signs(scale * unsigned_bytes(grid2_bytes(entry >> 8)), signs >> 4);
  }
}

GREBE_INLINE void dequant16_iq2_s(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 82;
  const uint g = k / 16 & 15, s = block[74 + (g >> 1)] >> ((g & 1) * 4) & 15u;
  const float scale = load_half(block) * 0.125f * float(s * 2 + 1);
  for (uint i = 0; i < 2; i++) {
    const uint at = 2 * g + i;
    const uint high = block[66 + (at >> 2)] >> ((at & 3) * 2) & 3u;
    const uint entry = kGridIQ2_S[block[2 + at] | high << 8], signs = block[34 + at];
    w[2 * i] = flip_signs(scale * unsigned_bytes(grid2_bytes(entry)), signs);
    w[2 * i + 1] = flip_signs(scale * unsigned_bytes(grid2_bytes(entry >> 8)), signs >> 4);
  }
}

GREBE_INLINE void dequant16_iq3_xxs(device const uchar* row, uint k, thread float4* w) {
  device const uchar* block = row + k / 256 * 98;
  const uint first = k / 8 & 2, bits = load4(block + 66 + (k / 32 & 7) * 4);
  const float scale = load_half(block) * 0.25f * float((bits >> 28) * 2 + 1);
  device const uchar* q = block + 2 + (k / 16 & 15) * 4;
  for (uint i = 0; i < 2; i++) {
    const uint signs = with_parity(bits >> (7 * (first + i)) & 127u);
    const float4 a = unsigned_bytes(grid3_bytes(kGridIQ3_XXS[q[2 * i]]));
    const float4 b = unsigned_bytes(grid3_bytes(kGridIQ3_XXS[q[2 * i + 1]]));
    w[2 * i] = flip_signs(scale * a, signs);
    w[2 * i + 1] = flip_signs(scale * b, signs >> 4);
  }
}

/// Weights [k, k + 16) of a row, k a multiple of 16 and below n_in; zeros at n_in and after. `type`
/// is a function constant, so one case remains. `scales` are the E8M0 bytes of the row of tiles
/// (F8 only).
GREBE_INLINE void dequant16(
    uint type,
    device const uchar* row,
    device const uchar* scales,
    uint k,
    uint n_in,
    thread float4* w) {
  switch (type) {
    case kWeightF8:
      return dequant16_f8(row, scales, k, n_in, w);
    case kWeightQ8_0:
      return dequant16_q8_0(row, k, w);
    case kWeightMXFP4:
      return dequant16_mxfp4(row, k, w);
    case kWeightQ2_K:
      return dequant16_q2_k(row, k, w);
    case kWeightQ3_K:
      return dequant16_q3_k(row, k, w);
    case kWeightQ4_K:
      return dequant16_q4_k(row, k, w);
    case kWeightQ5_K:
      return dequant16_q5_k(row, k, w);
    case kWeightQ6_K:
      return dequant16_q6_k(row, k, w);
    case kWeightIQ2_XXS:
      return dequant16_iq2_xxs(row, k, w);
    case kWeightIQ2_S:
      return dequant16_iq2_s(row, k, w);
    case kWeightIQ3_XXS:
      return dequant16_iq3_xxs(row, k, w);
    default:
      return dequant16_float(type, row, k, n_in, w);
  }
}
