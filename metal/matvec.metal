// Products of a few vectors with weights of any type: decode.
//
// Bound by reading the weights, once for all vectors. Each SIMD-group makes kRows outputs for
// kTokens vectors on its own; there is nothing to wait for within a threadgroup. Four rows share an
// x in registers, which keeps x at a quarter of the traffic of 8-bit weights, and give each lane
// some 64 bytes to wait for at a time: with the 20 SIMD-groups that fit a core's registers this is
// several times what hides the latency of memory. With 8 tokens two rows need the registers of
// four. One row is for products so small (a router) that four would leave cores idle.
#include <metal_stdlib>

#include "args/matmul_args.h"
#include "hyper_update.h"
#include "lane_weights.h"

using namespace metal;

constant uint kType0 [[function_constant(0)]];
constant uint kType1 [[function_constant(1)]];
constant uint kNormed [[function_constant(2)]];

// y[t, row] = sum_k w[row, k] x[t, k] for up to eight weights w. x f32[n_tokens, n_in], y
// f32[n_tokens, n_rows]. With kNormed, x stands for rms_norm(x) * norm. With kUpdateStreams one
// product of one token is the output of a sublayer and goes on into the streams (hyper_update.h):
// then w1 is fn, y1 the streams, y2 the partial products, s1 post and s2 comb.
// Grid: [row blocks of all products, groups]; 32 lanes x any number of SIMD-groups.
template <uint kRows, uint kTokens>
[[kernel, max_total_threads_per_threadgroup(256)]] void matvec(
    constant MatvecArgs& a [[buffer(0)]],
    device const uchar* w0 [[buffer(1)]],
    device const uchar* w1 [[buffer(2)]],
    device const uchar* w2 [[buffer(3)]],
    device const uchar* w3 [[buffer(4)]],
    device const uchar* w4 [[buffer(5)]],
    device const uchar* w5 [[buffer(6)]],
    device const uchar* w6 [[buffer(7)]],
    device const uchar* w7 [[buffer(8)]],
    device float* y0 [[buffer(9)]],
    device float* y1 [[buffer(10)]],
    device float* y2 [[buffer(11)]],
    device float* y3 [[buffer(12)]],
    device float* y4 [[buffer(13)]],
    device float* y5 [[buffer(14)]],
    device float* y6 [[buffer(15)]],
    device float* y7 [[buffer(16)]],
    device const uchar* s0 [[buffer(17)]],
    device const uchar* s1 [[buffer(18)]],
    device const uchar* s2 [[buffer(19)]],
    device const uchar* s3 [[buffer(20)]],
    device const uchar* s4 [[buffer(21)]],
    device const uchar* s5 [[buffer(22)]],
    device const uchar* s6 [[buffer(23)]],
    device const uchar* s7 [[buffer(24)]],
    device const float* x [[buffer(25)]],
    device const float* norm [[buffer(26)]],
    threadgroup half4* grid [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]],
    uint sg [[simdgroup_index_in_threadgroup]],
    uint n_sg [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup half4* grid1 = grid + grid_entries(kType0);
  if (grid_entries(kType0) + grid_entries(kType1) > 0) {
    fill_grid(kType0, grid, i_thread, n_sg * 32);
    if (kType1 != kType0) fill_grid(kType1, grid1, i_thread, n_sg * 32);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  uint p = 0;
  while (p + 1 < a.n_products && group.x >= a.products[p + 1].first_group) p++;
  constant MatvecProduct& product = a.products[p];
  const uint first = ((group.x - product.first_group) * n_sg + sg) * kRows;
  if (first >= product.n_rows && kUpdateStreams == 0) return;
  device const uchar* w = p == 0   ? w0
                          : p == 1 ? w1
                          : p == 2 ? w2
                          : p == 3 ? w3
                          : p == 4 ? w4
                          : p == 5 ? w5
                          : p == 6 ? w6
                                   : w7;
  device float* y = p == 0   ? y0
                    : p == 1 ? y1
                    : p == 2 ? y2
                    : p == 3 ? y3
                    : p == 4 ? y4
                    : p == 5 ? y5
                    : p == 6 ? y6
                             : y7;
  device const uchar* s = p == 0   ? s0
                          : p == 1 ? s1
                          : p == 2 ? s2
                          : p == 3 ? s3
                          : p == 4 ? s4
                          : p == 5 ? s5
                          : p == 6 ? s6
                                   : s7;

  LaneRows<kRows> rows;
#pragma unroll
  for (uint r = 0; r < kRows; r++) {
    const uint row = group.y * product.n_rows + min(first + r, product.n_rows - 1);
    rows.w[r] = w + row * product.row_bytes;
    rows.scales[r] = s + ulong((product.row_begin + row) / 128) * product.scale_stride;
  }
  const LaneInput in = {x + group.y * a.x_group_stride, a.x_stride, a.n_tokens, norm};
  LaneSums<kRows, kTokens> sums;
  sums.clear();
  const bool second = product.slot != 0;
  row_dots(
      second ? kType1 : kType0, rows, in, a.n_in, kNormed != 0, lane, second ? grid1 : grid, sums);

  // Lane t kRows + r keeps output (t, r).
  float mine = 0;
#pragma unroll
  for (uint t = 0; t < kTokens; t++) {
    float scale = 1;
    if (kNormed) scale = rsqrt(simd_sum(sums.squares[t]) / float(a.n_in) + a.eps);
#pragma unroll
    for (uint r = 0; r < kRows; r++) {
      const float sum = simd_sum(sums.dot[r][t]) * scale;
      if (lane == t * kRows + r) mine = sum;
    }
  }
  const uint t = lane / kRows, row = first + lane % kRows;
  if (t < min(kTokens, a.n_tokens) && row < product.n_rows) {
    y[ulong(t) * product.y_stride + group.y * a.y_group_stride + row] = mine;
  }
  if (kTokens == 1 && kUpdateStreams != 0) {
    update_streams<kRows>(
        a.update,
        first,
        mine,
        y1,
        (device const float*)s1,
        (device const float*)s2,
        w1,
        y2,
        (threadgroup float*)(grid1 + grid_entries(kType1)),
        group.x,
        sg,
        n_sg,
        lane);
  }
}

#define GREBE_MATVEC(kRows, kTokens) \
  template [[host_name(              \
      "matvec_r" #kRows              \
      "_t" #kTokens)]] [[kernel]] decltype(matvec<kRows, kTokens>) matvec<kRows, kTokens>;
GREBE_MATVEC(1, 1)
GREBE_MATVEC(4, 1)
GREBE_MATVEC(4, 2)
GREBE_MATVEC(4, 4)
GREBE_MATVEC(2, 8)
