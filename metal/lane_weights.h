// Rows of weights times vectors, by one SIMD-group: what decode spends its time on.
//
// A row is read in steps of 1,024 weights. In each step a lane owns four chunks of 8 consecutive
// weights; which ones depends on the type, so that neighbouring lanes read neighbouring bytes, no
// byte is read twice, and a chunk has one scale. Eight weights times x then cost eight
// multiply-adds and one scaling. Several rows share the x that a lane has read.
//
// Superblock types (256 weights): lanes 8 b to 8 b + 7 own block b of the step's four. Q8_0, floats
// and F8: chunk c of all lanes covers 256 consecutive weights. MXFP4: chunks 2 p and 2 p + 1 are
// the low and high nibbles of the same 8 bytes.
//
// The end of a row may be ragged: a lane past it reads its last block again and adds nothing, so
// loads need no branch.
#pragma once

#include <metal_stdlib>

#include "dequant.h"

using namespace metal;

/// 1: rows of F8 begin at multiples of 8 bytes.
constant uint kAlignedRows [[function_constant(15)]];

/// Eight weights: scale * (a, b) - min.
struct Chunk {
  float4 a, b;
  float scale, min;
};

// ---- grids of the IQ types, as halves in threadgroup memory

// IQ2_XXS and IQ3_XXS are so small that arithmetic limits them, not memory: an entry must arrive as
// numbers that a multiply-add takes, and a sign must cost half an operation. IQ2_S, rarely used,
// would need 16 KiB and expands its entries in registers.
static inline uint grid_entries(uint type) {
  return type == kWeightIQ2_XXS ? 512u : type == kWeightIQ3_XXS ? 256u : 0u;
}

/// Fills `grid`, half4[grid_entries(type)], by all threads of a threadgroup; a barrier must follow.
static inline void fill_grid(uint type, threadgroup half4* grid, uint i_thread, uint n_threads) {
  for (uint i = i_thread; i < grid_entries(type); i += n_threads) {
    const uint bytes = type == kWeightIQ2_XXS ? grid2_bytes(kGridIQ2_XXS[i / 2] >> (i % 2 * 8))
                                              : grid3_bytes(kGridIQ3_XXS[i]);
    grid[i] = half4(unsigned_bytes(bytes));
  }
}

/// v with signs flipped by bits 0 to 3 of `signs`: two halves at a time.
static inline float4 flip_half_signs(half4 v, uint signs) {
  const uint spread = signs | signs << 15;  // bit i also at i + 15: the sign of an odd half
  const uint2 mask = uint2(spread << 15, spread << 13) & 0x80008000u;
  return float4(as_type<half4>(as_type<uint2>(v) ^ mask));
}

// ---- a lane's share of a step

template <uint kType>
struct LaneWeights;

// Types whose chunks stand alone: chunk c of the lanes covers 256 consecutive weights. They are
// read when asked for.
struct FlatLane {
  device const uchar* row;
  device const uchar* scales;
  uint step, lane, n;
};
GREBE_INLINE FlatLane
flat_lane(device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
  return {row, scales, step, lane, n};
}
static inline uint flat_at(uint step, uint lane, uint c) {
  return step * 1024 + c * 256 + lane * 8;
}

/// First weight of chunk c, or of the last chunk of the row.
GREBE_INLINE uint flat_inside(const thread FlatLane& in, uint c) {
  return min(flat_at(in.step, in.lane, c), in.n - 8);
}

template <>
struct LaneWeights<kWeightF32> {
  FlatLane in;

  static uint at(uint step, uint lane, uint c) { return flat_at(step, lane, c); }
  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
    in = flat_lane(row, scales, step, lane, n);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    device const float* p = (device const float*)in.row + flat_inside(in, c);
    return {load_float4(p), load_float4(p + 4), 1.f, 0.f};
  }
};

template <>
struct LaneWeights<kWeightF16> {
  FlatLane in;

  static uint at(uint step, uint lane, uint c) { return flat_at(step, lane, c); }
  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
    in = flat_lane(row, scales, step, lane, n);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    device const uchar* p = in.row + 2 * flat_inside(in, c);
    return {float4(as_type<half4>(load8(p))), float4(as_type<half4>(load8(p + 8))), 1.f, 0.f};
  }
};

template <>
struct LaneWeights<kWeightBF16> {
  FlatLane in;

  static uint at(uint step, uint lane, uint c) { return flat_at(step, lane, c); }
  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
    in = flat_lane(row, scales, step, lane, n);
  }
  static float4 four(uint2 u) {
    return as_type<float4>(uint4(u.x << 16, u.x & 0xffff0000u, u.y << 16, u.y & 0xffff0000u));
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    device const uchar* p = in.row + 2 * flat_inside(in, c);
    return {four(load8(p)), four(load8(p + 8)), 1.f, 0.f};
  }
};

template <>
struct LaneWeights<kWeightF8> {
  FlatLane in;

  static uint at(uint step, uint lane, uint c) { return flat_at(step, lane, c); }
  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
    in = flat_lane(row, scales, step, lane, n);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint k = flat_inside(in, c);
    const uint2 q = kAlignedRows ? *(device const uint2*)(in.row + k) : load8_unaligned(in.row + k);
    float scale = e8m0_to_float(in.scales[k / 128]) * 0x1p8f;
    if (has_e4m3_nan(q.x) || has_e4m3_nan(q.y)) scale = as_type<float>(0x7fc00000u);
    return {e4m3_scaled(q.x), e4m3_scaled(q.y), scale, 0.f};
  }
};

template <>
struct LaneWeights<kWeightQ8_0> {
  FlatLane in;

  static uint at(uint step, uint lane, uint c) { return flat_at(step, lane, c); }
  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
    in = flat_lane(row, scales, step, lane, n);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint k = flat_inside(in, c);
    device const uchar* block = in.row + k / 32 * 34;
    const uint2 q = load8(block + 2 + (k & 24));
    return {signed_bytes(q.x), signed_bytes(q.y), load_half(block), 0.f};
  }
};

template <>
struct LaneWeights<kWeightMXFP4> {
  FlatLane in;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar* scales, uint step, uint lane, uint n) {
    in = flat_lane(row, scales, step, lane, n);
  }
  static uint at(uint step, uint lane, uint c) {
    return step * 1024 + (c / 2) * 512 + (lane / 2) * 32 + (c % 2) * 16 + (lane % 2) * 8;
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint i = min(at(in.step, in.lane, c) / 32, in.n / 32 - 1);
    device const uchar* block = in.row + i * 17;
    const uint2 q = load8_unaligned(block + 1 + (in.lane % 2) * 8) >> ((c % 2) * 4);
    return {e2m1_scaled(q.x), e2m1_scaled(q.y), mxfp4_scale(block[0]) * 0x1p15f, 0.f};
  }
};

// Superblock types read all of a step at once: j is the lane's place in its block.
static inline device const uchar* lane_block(
    device const uchar* row, uint step, uint lane, uint n, uint block_bytes) {
  return row + min(step * 4 + lane / 8, n / 256 - 1) * block_bytes;
}

// Chunk c: byte j % 4 of its 8 in half j / 4 of the block, weights 32 c further on.
static inline uint quarters_at(uint step, uint lane, uint c) {
  return step * 1024 + (lane / 4) * 128 + c * 32 + (lane % 4) * 8;
}

template <>
struct LaneWeights<kWeightQ2_K> {
  static uint at(uint step, uint lane, uint c) { return quarters_at(step, lane, c); }
  uint2 q;
  uint scales;  // of the four chunks, a byte each
  float d, dmin;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 84);
    const uint half_block = lane / 4 % 2, j = lane % 4;
    q = load8(block + 16 + half_block * 32 + j * 8);
    device const uchar* s = block + half_block * 8 + j / 2;
    scales = uint(s[0]) | uint(s[2]) << 8 | uint(s[4]) << 16 | uint(s[6]) << 24;
    d = load_half(block + 80);
    dmin = load_half(block + 82);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint2 u = q >> (2 * c) & 0x03030303u;
    return {
        unsigned_bytes(u.x),
        unsigned_bytes(u.y),
        d * float(scales >> (8 * c) & 15u),
        dmin * float(scales >> (8 * c + 4) & 15u)};
  }
};

template <>
struct LaneWeights<kWeightQ3_K> {
  static uint at(uint step, uint lane, uint c) { return quarters_at(step, lane, c); }
  uint2 q, high;
  char4 scales;
  float d;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 110);
    const uint half_block = lane / 4 % 2, j = lane % 4, g = half_block * 8 + j / 2;
    q = load8(block + 32 + half_block * 32 + j * 8);
    high = load8(block + j * 8) >> (half_block * 4);
#pragma unroll
    for (uint c = 0; c < 4; c++) scales[c] = char(q3_scale(block + 96, g + 2 * c));
    d = load_half(block + 108);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint2 u = (q >> (2 * c) & 0x03030303u) | (high >> c & 0x01010101u) << 2;
    return {unsigned_bytes(u.x) - 4.f, unsigned_bytes(u.y) - 4.f, d * float(scales[c]), 0.f};
  }
};

// Chunks 0, 1 are low nibbles of the lane's 16 bytes, 2, 3 the high ones 32 weights further on.
static inline uint nibbles_at(uint step, uint lane, uint c) {
  return step * 1024 + (lane / 2) * 64 + (c / 2) * 32 + (lane % 2) * 16 + (c % 2) * 8;
}

template <>
struct LaneWeights<kWeightQ4_K> {
  static uint at(uint step, uint lane, uint c) { return nibbles_at(step, lane, c); }
  uint2 q[2];
  float2 scale, min;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 144);
    const uint j = lane % 8;
    q[0] = load8(block + 16 + j * 16);
    q[1] = load8(block + 24 + j * 16);
    const uint2 low = k4_scale_min(block + 4, j / 2 * 2);
    const uint2 high = k4_scale_min(block + 4, j / 2 * 2 + 1);
    scale = load_half(block) * float2(low.x, high.x);
    min = load_half(block + 2) * float2(low.y, high.y);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint2 u = q[c % 2] >> (c / 2 * 4) & 0x0f0f0f0fu;
    return {unsigned_bytes(u.x), unsigned_bytes(u.y), scale[c / 2], min[c / 2]};
  }
};

template <>
struct LaneWeights<kWeightQ5_K> {
  static uint at(uint step, uint lane, uint c) { return nibbles_at(step, lane, c); }
  uint2 q[2], fifth[2];
  float2 scale, min;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 176);
    const uint j = lane % 8;
#pragma unroll
    for (uint i = 0; i < 2; i++) {
      q[i] = load8(block + 48 + j * 16 + 8 * i);
      fifth[i] = load8(block + 16 + j % 2 * 16 + 8 * i) >> (j / 2 * 2);
    }
    const uint2 low = k4_scale_min(block + 4, j / 2 * 2);
    const uint2 high = k4_scale_min(block + 4, j / 2 * 2 + 1);
    scale = load_half(block) * float2(low.x, high.x);
    min = load_half(block + 2) * float2(low.y, high.y);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint2 u =
        (q[c % 2] >> (c / 2 * 4) & 0x0f0f0f0fu) | (fifth[c % 2] >> (c / 2) & 0x01010101u) << 4;
    return {unsigned_bytes(u.x), unsigned_bytes(u.y), scale[c / 2], min[c / 2]};
  }
};

template <>
struct LaneWeights<kWeightQ6_K> {
  static uint at(uint step, uint lane, uint c) { return quarters_at(step, lane, c); }
  uint2 low[2], high;
  uint scales;  // of the four chunks, a signed byte each
  float d;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 210);
    const uint half_block = lane / 4 % 2, j = lane % 4;
    low[0] = load8(block + half_block * 64 + j * 8);
    low[1] = load8(block + half_block * 64 + 32 + j * 8);
    high = load8(block + 128 + half_block * 32 + j * 8);
    device const uchar* s = block + 192 + half_block * 8 + j / 2;
    scales = uint(s[0]) | uint(s[2]) << 8 | uint(s[4]) << 16 | uint(s[6]) << 24;
    d = load_half(block + 208);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint2 u = (low[c % 2] >> (c / 2 * 4) & 0x0f0f0f0fu) | (high >> (2 * c) & 0x03030303u)
                                                                    << 4;
    return {
        unsigned_bytes(u.x) - 32.f,
        unsigned_bytes(u.y) - 32.f,
        d * float(char(scales >> (8 * c) & 0xffu)),
        0.f};
  }
};

// The lane owns 32 consecutive weights.
static inline uint groups_at(uint step, uint lane, uint c) {
  return step * 1024 + lane * 32 + c * 8;
}

template <>
struct LaneWeights<kWeightIQ2_XXS> {
  static uint at(uint step, uint lane, uint c) { return groups_at(step, lane, c); }
  uint index, bits;
  float scale;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 66);
    const uint2 group = load8(block + 2 + lane % 8 * 8);
    index = group.x;
    bits = group.y;
    scale = load_half(block) * 0.125f * float((bits >> 28) * 2 + 1);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4* grid) const {
    const uint entry = index >> (8 * c) & 0xffu;
    const uint signs = with_parity(bits >> (7 * c) & 127u);
    return {
        flip_half_signs(grid[2 * entry], signs),
        flip_half_signs(grid[2 * entry + 1], signs >> 4),
        scale,
        0.f};
  }
};

template <>
struct LaneWeights<kWeightIQ3_XXS> {
  static uint at(uint step, uint lane, uint c) { return groups_at(step, lane, c); }
  uint2 index;
  uint bits;
  float scale;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 98);
    index = load8(block + 2 + lane % 8 * 8);
    bits = load4(block + 66 + lane % 8 * 4);
    scale = load_half(block) * 0.25f * float((bits >> 28) * 2 + 1);
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4* grid) const {
    const uint pair = index[c / 2] >> (c % 2 * 16);
    const uint signs = with_parity(bits >> (7 * c) & 127u);
    return {
        flip_half_signs(grid[pair & 0xffu], signs),
        flip_half_signs(grid[pair >> 8 & 0xffu], signs >> 4),
        scale,
        0.f};
  }
};

template <>
struct LaneWeights<kWeightIQ2_S> {
  static uint at(uint step, uint lane, uint c) { return groups_at(step, lane, c); }
  uint index, signs, high, scales;
  float d;

  GREBE_INLINE_METHOD void load(
      device const uchar* row, device const uchar*, uint step, uint lane, uint n) {
    device const uchar* block = lane_block(row, step, lane, n, 82);
    const uint j = lane % 8;
    index = load4(block + 2 + 4 * j);
    signs = load4(block + 34 + 4 * j);
    high = block[66 + j];
    scales = block[74 + j];
    d = load_half(block) * 0.125f;
  }
  GREBE_INLINE_METHOD Chunk chunk(uint c, threadgroup const half4*) const {
    const uint entry = kGridIQ2_S[(index >> (8 * c) & 0xffu) | (high >> (2 * c) & 3u) << 8];
    const uint s = signs >> (8 * c);
    return {
        flip_signs(unsigned_bytes(grid2_bytes(entry)), s),
        flip_signs(unsigned_bytes(grid2_bytes(entry >> 8)), s >> 4),
        d * float((scales >> (c / 2 * 4) & 15u) * 2 + 1),
        0.f};
  }
};

// ---- rows times vectors

/// Rows that a SIMD-group works on. Of types other than F8, scales are not read.
template <uint kRows>
struct LaneRows {
  device const uchar* w[kRows];
  device const uchar* scales[kRows];  // E8M0 bytes of the row of tiles
};

/// Vectors that the rows are multiplied with.
struct LaneInput {
  device const float* x;  // f32[n_tokens, stride]
  uint stride, n_tokens;
  device const float* norm;  // f32[n_in], used when a kernel says so
};

/// Partial sums of a lane; simd_sum() completes them.
template <uint kRows, uint kTokens>
struct LaneSums {
  float dot[kRows][kTokens];
  float squares[kTokens];  // of x, when normalised

  GREBE_INLINE_METHOD void clear() {
#pragma unroll
    for (uint t = 0; t < kTokens; t++) {
      squares[t] = 0;
#pragma unroll
      for (uint r = 0; r < kRows; r++) dot[r][t] = 0;
    }
  }
};

// One weight of a type without blocks.
template <uint kType>
static inline float one_weight(device const uchar* row, device const uchar* scales, uint k) {
  return kType == kWeightF32    ? ((device const float*)row)[k]
         : kType == kWeightF16  ? float(((device const half*)row)[k])
         : kType == kWeightBF16 ? bf16_to_float(((device const ushort*)row)[k])
                                : e4m3_to_float(row[k]) * e8m0_to_float(scales[k / 128]);
}

/// sums.dot[r][t] += row r times x of token t; with `normed`, x is multiplied by norm first and its
/// squares are summed too: what RMS normalisation needs costs no pass of its own, since the lanes
/// of the SIMD-group together read all of x.
template <uint kType, uint kRows, uint kTokens>
GREBE_INLINE void typed_row_dots(
    const thread LaneRows<kRows>& rows,
    const thread LaneInput& in,
    uint n_in,
    bool normed,
    uint lane,
    threadgroup const half4* grid,
    thread LaneSums<kRows, kTokens>& sums) {
  typedef LaneWeights<kType> Weights;
  const uint n = n_in & ~7u, n_steps = (n + 1023) / 1024;
  uint x_of[kTokens];
#pragma unroll
  for (uint t = 0; t < kTokens; t++) x_of[t] = min(t, in.n_tokens - 1) * in.stride;
  for (uint step = 0; step < n_steps; step++) {
    Weights w[kRows];
#pragma unroll
    for (uint r = 0; r < kRows; r++) w[r].load(rows.w[r], rows.scales[r], step, lane, n);
#pragma unroll
    for (uint c = 0; c < 4; c++) {
      const uint at = Weights::at(step, lane, c);
      const bool inside = at < n;
      const uint k = inside ? at : 0;
      Chunk chunks[kRows];
#pragma unroll
      for (uint r = 0; r < kRows; r++) chunks[r] = w[r].chunk(c, grid);
      float4 na = 1, nb = 1;
      if (normed) {
        na = load_float4(in.norm + k);
        nb = load_float4(in.norm + k + 4);
      }
#pragma unroll
      for (uint t = 0; t < kTokens; t++) {
        float4 xa = load_float4(in.x + x_of[t] + k), xb = load_float4(in.x + x_of[t] + k + 4);
        if (normed) {
          const float squares = dot(xa, xa) + dot(xb, xb);
          sums.squares[t] += inside ? squares : 0.f;
          xa *= na;
          xb *= nb;
        }
        const float4 both = xa + xb;
        const float sum = both.x + both.y + both.z + both.w;
#pragma unroll
        for (uint r = 0; r < kRows; r++) {
          const float product = dot(chunks[r].a, xa) + dot(chunks[r].b, xb);
          const float part = chunks[r].scale * product - chunks[r].min * sum;
          sums.dot[r][t] += inside ? part : 0.f;
        }
      }
    }
  }
  if (kType == kWeightF32 || kType == kWeightF16 || kType == kWeightBF16 || kType == kWeightF8) {
    const uint k = n + lane;  // only these types have rows of any length
    if (k < n_in) {
#pragma unroll
      for (uint t = 0; t < kTokens; t++) {
        float x = in.x[x_of[t] + k];
        if (normed) {
          sums.squares[t] += x * x;
          x *= in.norm[k];
        }
#pragma unroll
        for (uint r = 0; r < kRows; r++) {
          sums.dot[r][t] += one_weight<kType>(rows.w[r], rows.scales[r], k) * x;
        }
      }
    }
  }
}

/// The same for a type known when the pipeline is made (or chosen between two such): only its case
/// remains.
template <uint kRows, uint kTokens>
GREBE_INLINE void row_dots(
    uint type,
    const thread LaneRows<kRows>& rows,
    const thread LaneInput& in,
    uint n_in,
    bool normed,
    uint lane,
    threadgroup const half4* grid,
    thread LaneSums<kRows, kTokens>& sums) {
#define GREBE_CASE(kType) \
  case kType:             \
    return typed_row_dots<kType, kRows, kTokens>(rows, in, n_in, normed, lane, grid, sums)
  switch (type) {
    GREBE_CASE(kWeightF32);
    GREBE_CASE(kWeightF16);
    GREBE_CASE(kWeightBF16);
    GREBE_CASE(kWeightF8);
    GREBE_CASE(kWeightQ8_0);
    GREBE_CASE(kWeightMXFP4);
    GREBE_CASE(kWeightQ2_K);
    GREBE_CASE(kWeightQ3_K);
    GREBE_CASE(kWeightQ4_K);
    GREBE_CASE(kWeightQ5_K);
    GREBE_CASE(kWeightQ6_K);
    GREBE_CASE(kWeightIQ2_XXS);
    GREBE_CASE(kWeightIQ2_S);
    GREBE_CASE(kWeightIQ3_XXS);
  }
#undef GREBE_CASE
}
