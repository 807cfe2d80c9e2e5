// Token embedding: rows of a weight of any type as floats, once for each stream.
#include <metal_stdlib>

#include "args/embed_args.h"
#include "dequant.h"

using namespace metal;

constant uint kType [[function_constant(0)]];

// X[t, j, :] = w[tokens[t], :] for all streams j. Grid: [runs of 16 columns, tokens].
[[kernel, max_total_threads_per_threadgroup(64)]] void embed(
    constant EmbedArgs& a [[buffer(0)]],
    device const uchar* w [[buffer(1)]],
    device const uchar* scales [[buffer(2)]],
    device const int* tokens [[buffer(3)]],
    device float* X [[buffer(4)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint i [[thread_index_in_threadgroup]]) {
  const uint k = (group.x * 64 + i) * 16, t = group.y;
  if (k >= a.n_in) return;
  const uint token = min(uint(tokens[t]), a.n_rows - 1);
  float4 v[4];
  dequant16(
      kType,
      w + ulong(token) * a.row_bytes,
      scales + ulong(token / 128) * a.scale_stride,
      k,
      a.n_in,
      v);
  const uint n = min(a.n_in - k, 16u);
  for (uint j = 0; j < a.n_streams; j++) {
    device float* out = X + (ulong(t) * a.n_streams + j) * a.n_in + k;
    if (n == 16) {
#pragma unroll
      for (uint q = 0; q < 4; q++) ((device packed_float4*)out)[q] = v[q];
    } else {
#pragma unroll
      for (uint c = 0; c < 16; c++) {
        if (c < n) out[c] = v[c / 4][c % 4];
      }
    }
  }
}
