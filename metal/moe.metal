// Routed and shared experts of a few tokens: decode [V4 4.10]. Many tokens: moe_prefill.metal.
//
// Two dispatches: gate, up and SwiGLU of all experts of all tokens; then down, summed over experts.
// Both read each weight of a token's experts once; the shared expert's are read once for all
// tokens. Tokens that share a routed expert read it once each: of 256 experts, 8 tokens with 6 each
// use 44 of the 48 on average.
#include <metal_stdlib>

#include "args/moe_args.h"
#include "hyper_update.h"
#include "lane_weights.h"
#include "route.h"
#include "swiglu.h"

using namespace metal;

constant uint kGate [[function_constant(0)]];
constant uint kUp [[function_constant(1)]];
constant uint kSharedGate [[function_constant(2)]];
constant uint kSharedUp [[function_constant(3)]];
constant uint kDown [[function_constant(4)]];
constant uint kSharedDown [[function_constant(5)]];
constant uint kRoute [[function_constant(6)]];  // MoeRoute

// A matrix of one expert.
struct Matrix {
  uint type;  // a function constant
  device const uchar* w;
  device const uchar* scales;
  ulong row_bytes;
  uint scale_stride;
  threadgroup const half4* grid;
};

GREBE_INLINE Matrix expert_matrix(
    uint type,
    constant MoeWeight& m,
    device const uchar* w,
    device const uchar* scales,
    uint expert,
    threadgroup const half4* grid) {
  return {
      type,
      w + expert * m.expert_bytes,
      scales + ulong(expert) * m.expert_scale_bytes,
      m.row_bytes,
      m.scale_stride,
      grid};
}

template <uint kRows>
GREBE_INLINE void set_row(thread LaneRows<kRows>& rows, uint r, const thread Matrix& m, uint row) {
  rows.w[r] = m.w + row * m.row_bytes;
  rows.scales[r] = m.scales + ulong(row / 128) * m.scale_stride;
}

// Rows [first, first + kPairs) of gate and of up times x: sums.dot[r] for gate, sums.dot[kPairs +
// r] for up. Both matrices share what is read of x when they have one type, as in every known file;
// else there are two passes, each with its own rows in both places.
template <uint kPairs, uint kTokens>
GREBE_INLINE void gate_up_dots(
    const thread Matrix& gate,
    const thread Matrix& up,
    const thread LaneInput& in,
    uint hidden,
    uint n_ff,
    uint first,
    uint lane,
    thread LaneSums<2 * kPairs, kTokens>& sums) {
  const uint n_passes = gate.type == up.type ? 1 : 2;
  for (uint pass = 0; pass < n_passes; pass++) {
    LaneRows<2 * kPairs> rows;
    LaneSums<2 * kPairs, kTokens> part;
    part.clear();
#pragma unroll
    for (uint r = 0; r < kPairs; r++) {
      const uint row = min(first + r, n_ff - 1);
      if (pass == 0) {
        set_row(rows, r, gate, row);
      } else {
        set_row(rows, r, up, row);
      }
      if (pass + 1 == n_passes) {
        set_row(rows, kPairs + r, up, row);
      } else {
        set_row(rows, kPairs + r, gate, row);
      }
    }
    row_dots(
        pass ? up.type : gate.type,
        rows,
        in,
        hidden,
        false,
        lane,
        pass ? up.grid : gate.grid,
        part);
#pragma unroll
    for (uint r = 0; r < kPairs; r++) {
#pragma unroll
      for (uint t = 0; t < kTokens; t++) {
        if (pass == 0) sums.dot[r][t] = part.dot[r][t];
        sums.dot[kPairs + r][t] = part.dot[kPairs + r][t];
      }
    }
  }
}

// h[t, i] = swiglu(gate row i x[t], up row i x[t]) * weight for rows [first, first + kPairs).
template <uint kPairs, uint kTokens>
GREBE_INLINE void gate_up_rows(
    const thread Matrix& gate,
    const thread Matrix& up,
    const thread LaneInput& in,
    uint hidden,
    uint n_ff,
    uint first,
    float clamp,
    float weight,
    uint lane,
    device float* h) {
  LaneSums<2 * kPairs, kTokens> sums;
  gate_up_dots<kPairs, kTokens>(gate, up, in, hidden, n_ff, first, lane, sums);
  float g = 0, u = 0;
#pragma unroll
  for (uint t = 0; t < kTokens; t++) {
#pragma unroll
    for (uint r = 0; r < kPairs; r++) {
      const float gate_sum = simd_sum(sums.dot[r][t]), up_sum = simd_sum(sums.dot[kPairs + r][t]);
      if (lane == t * kPairs + r) {
        g = gate_sum;
        u = up_sum;
      }
    }
  }
  const uint t = lane / kPairs, row = first + lane % kPairs;
  if (t < min(kTokens, in.n_tokens) && row < n_ff) {
    h[ulong(t) * n_ff + row] = swiglu(g, u, clamp, weight);
  }
}

// x f32[n, hidden] -> h f32[n, n_used, n_ff], then f32[n, n_shared_ff] of the shared expert. A
// SIMD-group makes two values of a routed expert for one token, kSharedPairs of the shared expert
// for all. When kRoute asks for it, the first SIMD-group of each threadgroup routes its token
// while the others wait (of 256 experts, some 300 instructions for the 8 scores of a lane
// and 60 for each choice), which saves a dispatch and a barrier; one threadgroup of each token
// writes experts i32[n, n_used] and weights f32[n, n_used].
// Grid: [n x n_used x groups_per_expert, then groups of the shared expert].
template <uint kSharedPairs, uint kTokens>
[[kernel, max_total_threads_per_threadgroup(256)]] void moe_gate_up(
    constant MoeGateUpArgs& a [[buffer(0)]],
    device const uchar* gate [[buffer(1)]],
    device const uchar* up [[buffer(2)]],
    device const uchar* shared_gate [[buffer(3)]],
    device const uchar* shared_up [[buffer(4)]],
    device const uchar* gate_scales [[buffer(5)]],
    device const uchar* up_scales [[buffer(6)]],
    device const uchar* shared_gate_scales [[buffer(7)]],
    device const uchar* shared_up_scales [[buffer(8)]],
    device const float* x [[buffer(9)]],
    device int* experts [[buffer(10)]],
    device float* weights [[buffer(11)]],
    device float* h [[buffer(12)]],
    device const float* logits [[buffer(13)]],
    device const float* bias [[buffer(14)]],
    device const int* tid2eid [[buffer(15)]],
    device const int* tokens [[buffer(16)]],
    threadgroup half4* grid [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]],
    uint sg [[simdgroup_index_in_threadgroup]],
    uint n_sg [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup int chosen[kRouteMaxUsed];
  threadgroup float mix[kRouteMaxUsed];
  constant MoeShape& s = a.shape;

  if (group >= a.n_routed_groups) {
    threadgroup half4* up_grid = grid;
    if (grid_entries(kSharedGate) + grid_entries(kSharedUp) > 0) {
      fill_grid(kSharedGate, grid, i_thread, n_sg * 32);
      if (kSharedUp != kSharedGate) {
        up_grid += grid_entries(kSharedGate);
        fill_grid(kSharedUp, up_grid, i_thread, n_sg * 32);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    const uint first = ((group - a.n_routed_groups) * n_sg + sg) * kSharedPairs;
    if (first >= s.n_shared_ff) return;
    const Matrix g =
        expert_matrix(kSharedGate, a.shared_gate, shared_gate, shared_gate_scales, 0, grid);
    const Matrix u = expert_matrix(kSharedUp, a.shared_up, shared_up, shared_up_scales, 0, up_grid);
    const LaneInput in = {x, s.hidden, s.n_tokens, x};
    device float* to = h + ulong(s.n_tokens) * s.n_used * s.n_ff;
    gate_up_rows<kSharedPairs, kTokens>(
        g, u, in, s.hidden, s.n_shared_ff, first, a.shared_clamp, 1.f, lane, to);
    return;
  }

  const uint pair = group / a.groups_per_expert, block = group % a.groups_per_expert;
  const uint token = pair / s.n_used, slot = pair % s.n_used;
  threadgroup half4* up_grid = grid;
  fill_grid(kGate, grid, i_thread, n_sg * 32);
  if (kUp != kGate) {
    up_grid += grid_entries(kGate);
    fill_grid(kUp, up_grid, i_thread, n_sg * 32);
  }
  if (kRoute != kRouteDone && sg == 0) {
    device const int* by_token = nullptr;
    if (kRoute == kRouteTable) by_token = tid2eid + ulong(tokens[token]) * s.n_used;
    route_token(
        a.route, logits + ulong(token) * s.n_experts, bias, by_token, true, chosen, mix, lane);
    if (slot == 0 && block == 0) {
      for (uint k = lane; k < s.n_used; k += 32) {
        experts[token * s.n_used + k] = chosen[k];
        weights[token * s.n_used + k] = mix[k];
      }
    }
  }
  if (kRoute != kRouteDone || grid_entries(kGate) + grid_entries(kUp) > 0) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  uint expert;
  float weight;
  if (kRoute == kRouteDone) {
    expert = min(uint(experts[pair]), s.n_experts - 1);
    weight = weights[pair];
  } else {
    expert = uint(chosen[slot]);
    weight = mix[slot];
  }
  const uint first = (block * n_sg + sg) * 2;
  if (first >= s.n_ff) return;
  const Matrix g = expert_matrix(kGate, a.gate, gate, gate_scales, expert, grid);
  const Matrix u = expert_matrix(kUp, a.up, up, up_scales, expert, up_grid);
  const LaneInput in = {x + ulong(token) * s.hidden, s.hidden, 1, x};
  device float* to = h + ulong(pair) * s.n_ff;
  gate_up_rows<2, 1>(g, u, in, s.hidden, s.n_ff, first, a.clamp, weight, lane, to);
}

#define GREBE_GATE_UP(kPairs, kTokens)             \
  template [[host_name("moe_gate_up_t" #kTokens)]] \
  [[kernel]] decltype(moe_gate_up<kPairs, kTokens>) moe_gate_up<kPairs, kTokens>;
GREBE_GATE_UP(2, 1)
GREBE_GATE_UP(2, 2)
GREBE_GATE_UP(2, 4)
GREBE_GATE_UP(1, 8)

// y[t, row] = sum over the token's experts of down row times h, plus the shared expert's. The sum
// over experts stays in the SIMD-group that makes the row: no atomics, always the same order. With
// kUpdateStreams y goes on into the streams (hyper_update.h).
// Grid: [row blocks].
template <uint kRows, uint kTokens>
[[kernel, max_total_threads_per_threadgroup(256)]] void moe_down(
    constant MoeDownArgs& a [[buffer(0)]],
    device const uchar* down [[buffer(1)]],
    device const uchar* shared_down [[buffer(2)]],
    device const uchar* down_scales [[buffer(3)]],
    device const uchar* shared_down_scales [[buffer(4)]],
    device const float* h [[buffer(5)]],
    device const int* experts [[buffer(6)]],
    device float* y [[buffer(7)]],
    device float* streams [[buffer(8)]],
    device const float* post [[buffer(9)]],
    device const float* comb [[buffer(10)]],
    device const uchar* fn [[buffer(11)]],
    device float* partials [[buffer(12)]],
    threadgroup half4* grid [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]],
    uint sg [[simdgroup_index_in_threadgroup]],
    uint n_sg [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constant MoeShape& s = a.shape;
  threadgroup half4* shared_grid = grid;
  if (grid_entries(kDown) + grid_entries(kSharedDown) > 0) {
    fill_grid(kDown, grid, i_thread, n_sg * 32);
    if (kSharedDown != kDown) {
      shared_grid += grid_entries(kDown);
      fill_grid(kSharedDown, shared_grid, i_thread, n_sg * 32);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  const uint first = (group * n_sg + sg) * kRows;
  if (first >= s.hidden && kUpdateStreams == 0) return;
  LaneRows<kRows> rows;
  LaneSums<kRows, kTokens> sums;
  sums.clear();
  if (s.n_shared_ff > 0) {
    const Matrix m =
        expert_matrix(kSharedDown, a.shared_down, shared_down, shared_down_scales, 0, shared_grid);
#pragma unroll
    for (uint r = 0; r < kRows; r++) set_row(rows, r, m, min(first + r, s.hidden - 1));
    device const float* shared_h = h + ulong(s.n_tokens) * s.n_used * s.n_ff;
    const LaneInput in = {shared_h, s.n_shared_ff, s.n_tokens, h};
    row_dots(kSharedDown, rows, in, s.n_shared_ff, false, lane, shared_grid, sums);
  }
  for (uint t = 0; t < s.n_tokens; t++) {
    LaneSums<kRows, 1> routed;
    routed.clear();
    for (uint slot = 0; slot < s.n_used; slot++) {
      const uint pair = t * s.n_used + slot, expert = min(uint(experts[pair]), s.n_experts - 1);
      const Matrix m = expert_matrix(kDown, a.down, down, down_scales, expert, grid);
#pragma unroll
      for (uint r = 0; r < kRows; r++) set_row(rows, r, m, min(first + r, s.hidden - 1));
      const LaneInput in = {h + ulong(pair) * s.n_ff, s.n_ff, 1, h};
      row_dots(kDown, rows, in, s.n_ff, false, lane, grid, routed);
    }
    // Constant indices keep the sums in registers.
#pragma unroll
    for (uint i = 0; i < kTokens; i++) {
#pragma unroll
      for (uint r = 0; r < kRows; r++) {
        if (i == t) sums.dot[r][i] += routed.dot[r][0];
      }
    }
  }
  float mine = 0;
#pragma unroll
  for (uint t = 0; t < kTokens; t++) {
#pragma unroll
    for (uint r = 0; r < kRows; r++) {
      const float sum = simd_sum(sums.dot[r][t]);
      if (lane == t * kRows + r) mine = sum;
    }
  }
  const uint t = lane / kRows, row = first + lane % kRows;
  if (t < min(kTokens, s.n_tokens) && row < s.hidden) y[ulong(t) * s.hidden + row] = mine;
  if (kTokens == 1 && kUpdateStreams != 0) {
    update_streams<kRows>(
        a.update,
        first,
        mine,
        streams,
        post,
        comb,
        fn,
        partials,
        (threadgroup float*)(shared_grid + grid_entries(kSharedDown)),
        group,
        sg,
        n_sg,
        lane);
  }
}

#define GREBE_DOWN(kRows, kTokens)                                                            \
  template [[host_name("moe_down_t" #kTokens)]] [[kernel]] decltype(moe_down<kRows, kTokens>) \
      moe_down<kRows, kTokens>;
GREBE_DOWN(4, 1)
GREBE_DOWN(4, 2)
GREBE_DOWN(4, 4)
GREBE_DOWN(2, 8)
