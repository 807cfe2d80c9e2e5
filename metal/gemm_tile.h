// Tiles of weights times many vectors with matrix units: what prefill spends its time on.
//
// A threadgroup of four SIMD-groups makes 64 rows x kTokens tokens. Per slab of 32 columns each
// thread turns 16 weights into numbers (one call of dequant16) and copies its share of x, both into
// threadgroup memory; then each SIMD-group multiplies its quarter, 32 rows x kTokens / 2 tokens.
// With 64 tokens that is 64 multiplications of 8 x 8 tiles (some 1,000 cycles) for some 150 cycles
// of unpacking, and 8 loads for 16 products. Fewer tokens (32, 16) waste less when an expert has
// only some; wider slabs would halve the number of threadgroups that fit a core. E, what tiles are
// made of, is half, or float where the host wants no rounding. Rows of tiles are padded by 16
// bytes, so that the 8 rows of a matrix do not fall on the same memory banks.
#pragma once

#include <metal_stdlib>

#include "dequant.h"

using namespace metal;

enum : uint { kTileRows = 64, kTileDepth = 32, kTileThreads = 128 };

/// Sizes in threadgroup memory.
template <class E, uint kTokens>
struct TileShape {
  enum : uint {
    kPitch = kTileDepth + 16 / sizeof(E),  // elements from row to row
    kInputs = (kTileRows + kTokens) * kPitch * sizeof(E),
    kOutputs = kTileRows * kTokens * sizeof(float),
    kBytes = kInputs > kOutputs ? kInputs : kOutputs,
  };
};

/// What a SIMD-group has summed: tokens x rows.
template <uint kTokens>
struct TileSums {
  simdgroup_float8x8 v[kTokens / 16][4];
};

/// Where a thread finds its share of the inputs of a tile.
template <class In>
struct TileInput {
  uint type;
  device const uchar* w;       // row i_thread / 2 of the tile
  device const uchar* scales;  // E8M0 bytes of its row of tiles
  device const In* x;          // token i_thread / (128 / kTokens)
  uint n_in;
};

// Rows are aligned to their elements, and packed vectors ask for no more.
static inline float4 load_four(device const float* p) { return *(device const packed_float4*)p; }
static inline float4 load_four(device const half* p) {
  return float4(half4(*(device const packed_half4*)p));
}

/// x as what a tile is made of. Numbers too large for a half become the largest one: an infinity
/// times a zero of another row would be NaN. What is not finite stays so.
template <class E>
GREBE_INLINE float4 within(float4 x) {
  if (sizeof(E) == 4) return x;
  return select(x, clamp(x, -65504.f, 65504.f), fabs(x) < INFINITY);
}

static inline void store_four(threadgroup half* p, float4 v) { *(threadgroup half4*)p = half4(v); }
static inline void store_four(threadgroup float* p, float4 v) { *(threadgroup float4*)p = v; }

/// sums = x times w, transposed. All 128 threads call it; `memory` is free again after a barrier.
template <class E, uint kTokens, class In>
GREBE_INLINE void tile_product(
    const thread TileInput<In>& in,
    uint i_thread,
    uint sg,
    threadgroup uchar* memory,
    thread TileSums<kTokens>& sums) {
  typedef TileShape<E, kTokens> Shape;
  const uint kWave = kTokens / 2, kFloats = kTokens / 4;  // tokens of a SIMD-group, x of a thread
  threadgroup E* ws = (threadgroup E*)memory;
  threadgroup E* xs = ws + kTileRows * Shape::kPitch;
  const uint w_column = i_thread % 2 * 16, x_column = i_thread % (128 / kTokens) * kFloats;
  threadgroup E* w_out = ws + i_thread / 2 * Shape::kPitch + w_column;
  threadgroup E* x_out = xs + i_thread / (128 / kTokens) * Shape::kPitch + x_column;
  threadgroup const E* w_in = ws + sg / 2 * 32 * Shape::kPitch;
  threadgroup const E* x_in = xs + sg % 2 * kWave * Shape::kPitch;

#pragma unroll
  for (uint t = 0; t < kWave / 8; t++) {
#pragma unroll
    for (uint r = 0; r < 4; r++) sums.v[t][r] = make_filled_simdgroup_matrix<float, 8, 8>(0.f);
  }
  for (uint k = 0; k < in.n_in; k += kTileDepth) {
    float4 w[4] = {float4(0), float4(0), float4(0), float4(0)};
    if (k + w_column < in.n_in) dequant16(in.type, in.w, in.scales, k + w_column, in.n_in, w);
    float4 x[kFloats / 4];
#pragma unroll
    for (uint i = 0; i < kFloats / 4; i++) {
      const uint at = k + x_column + 4 * i;
      if (at + 4 <= in.n_in) {
        x[i] = load_four(in.x + at);
      } else {
        for (uint c = 0; c < 4; c++) x[i][c] = at + c < in.n_in ? float(in.x[at + c]) : 0.f;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the last slab has been read
#pragma unroll
    for (uint i = 0; i < 4; i++) store_four(w_out + 4 * i, w[i]);
#pragma unroll
    for (uint i = 0; i < kFloats / 4; i++) {
      // What came as halves fits.
      store_four(x_out + 4 * i, sizeof(In) == sizeof(E) ? x[i] : within<E>(x[i]));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (uint c = 0; c < kTileDepth; c += 8) {
      simdgroup_matrix<E, 8, 8> a[kWave / 8], b[4];
#pragma unroll
      for (uint t = 0; t < kWave / 8; t++) {
        simdgroup_load(a[t], x_in + t * 8 * Shape::kPitch + c, Shape::kPitch);
      }
#pragma unroll
      for (uint r = 0; r < 4; r++) {
        simdgroup_load(b[r], w_in + r * 8 * Shape::kPitch + c, Shape::kPitch, ulong2(0, 0), true);
      }
#pragma unroll
      for (uint t = 0; t < kWave / 8; t++) {
#pragma unroll
        for (uint r = 0; r < 4; r++) {
          simdgroup_multiply_accumulate(sums.v[t][r], a[t], b[r], sums.v[t][r]);
        }
      }
    }
  }
}

/// The tile's outputs in threadgroup memory, f32[kTokens, 64], ready to be read by all.
template <uint kTokens>
GREBE_INLINE threadgroup const float* tile_outputs(
    const thread TileSums<kTokens>& sums, uint sg, threadgroup uchar* memory) {
  threadgroup float* out = (threadgroup float*)memory;
  const uint token = sg % 2 * (kTokens / 2), row = sg / 2 * 32;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the inputs have been read
#pragma unroll
  for (uint t = 0; t < kTokens / 16; t++) {
#pragma unroll
    for (uint r = 0; r < 4; r++) {
      simdgroup_store(sums.v[t][r], out + (token + t * 8) * kTileRows + row + r * 8, kTileRows);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return out;
}
