// Products of many vectors with weights of any type: prefill.
#include <metal_stdlib>

#include "args/matmul_args.h"
#include "gemm_tile.h"

using namespace metal;

constant uint kType [[function_constant(0)]];

// y[t, row] = sum_k w[row, k] x[t, k]. x f32[n_tokens, n_in], y f32[n_tokens, n_rows].
// Grid: [tiles of tokens, tiles of rows, groups]: tiles that run at the same time share rows of
// weights.
template <class E, uint kTokens>
[[kernel, max_total_threads_per_threadgroup(128)]] void matmul(
    constant MatmulArgs& a [[buffer(0)]],
    device const uchar* w [[buffer(1)]],
    device const uchar* scales [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]],
    uint sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float4 memory[TileShape<E, kTokens>::kBytes / 16];
  threadgroup uchar* shared = (threadgroup uchar*)memory;
  const uint first_token = group.x * kTokens, first_row = group.y * kTileRows;
  // Past the end the last row and token are computed again, and not written.
  const uint row = group.z * a.n_rows + min(first_row + i_thread / 2, a.n_rows - 1);
  const uint token = min(first_token + i_thread / (128 / kTokens), a.n_tokens - 1);
  const TileInput<float> in = {
      kType,
      w + row * a.row_bytes,
      scales + ulong((a.row_begin + row) / 128) * a.scale_stride,
      x + ulong(token) * a.x_stride + group.z * a.x_group_stride,
      a.n_in};
  TileSums<kTokens> sums;
  tile_product<E, kTokens>(in, i_thread, sg, shared, sums);
  threadgroup const float* out = tile_outputs(sums, sg, shared);
  const uint r = i_thread % kTileRows, n = min(kTokens, a.n_tokens - first_token);
  if (first_row + r >= a.n_rows) return;
  device float* to = y + group.z * a.y_group_stride + first_row + r;
  for (uint t = i_thread / kTileRows; t < n; t += kTileThreads / kTileRows) {
    to[ulong(first_token + t) * a.y_stride] = out[t * kTileRows + r];
  }
}

#define GREBE_MATMUL(kType, kTokens) \
  template [[host_name(              \
      "matmul_" #kType               \
      "_t" #kTokens)]] [[kernel]] decltype(matmul<kType, kTokens>) matmul<kType, kTokens>;
GREBE_MATMUL(half, 16)
GREBE_MATMUL(half, 32)
GREBE_MATMUL(half, 64)
GREBE_MATMUL(float, 16)
GREBE_MATMUL(float, 32)
GREBE_MATMUL(float, 64)
