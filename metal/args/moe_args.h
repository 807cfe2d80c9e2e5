// Arguments of metal/moe.metal and metal/moe_prefill.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

#include "args/hyper_args.h"
#include "args/route_args.h"

namespace grebe {

/// A stack of experts' matrices, or the one of the shared expert.
struct MoeWeight {
  uint64_t row_bytes, expert_bytes;
  uint32_t scale_stride, expert_scale_bytes;
};
static_assert(sizeof(MoeWeight) == 24, "as on the other side");

/// What both halves of a layer's experts need.
struct MoeShape {
  uint32_t n_tokens, hidden, n_ff, n_shared_ff;  // n_shared_ff 0: no shared expert
  uint32_t n_experts, n_used;
};
static_assert(sizeof(MoeShape) == 24, "as on the other side");

/// Decode: gate and up. Groups [0, n_routed_groups) of the grid are routed experts.
struct MoeGateUpArgs {
  MoeWeight gate, up, shared_gate, shared_up;
  MoeShape shape;
  RouteArgs route;
  float clamp, shared_clamp;  // 0: none
  uint32_t groups_per_expert, n_routed_groups;
};
static_assert(sizeof(MoeGateUpArgs) == 152, "as on the other side");

/// Decode: down.
struct MoeDownArgs {
  MoeWeight down, shared_down;
  MoeShape shape;
  StreamUpdateArgs update;
};
static_assert(sizeof(MoeDownArgs) == 88, "as on the other side");

/// How kRoute chooses experts in decode.
enum MoeRoute : uint32_t {
  kRouteDone = 0,   // experts and weights are inputs
  kRouteScore = 1,  // from logits and bias
  kRouteTable = 2,  // from a table by token; logits give the weights
};

/// Prefill: tokens of one expert that a threadgroup multiplies at once, of the sorted pairs.
struct MoeTile {
  uint32_t expert, first, count;  // count 0: nothing to do
};
static_assert(sizeof(MoeTile) == 12, "as on the other side");

/// Prefill: sorts pairs (token, slot) by expert.
struct MoeGroupArgs {
  uint32_t n_pairs, n_experts, tile_tokens;
};
static_assert(sizeof(MoeGroupArgs) == 12, "as on the other side");

/// Prefill: gate, up and SwiGLU of tiles.
struct MoeTilesGateUpArgs {
  MoeWeight gate, up;
  uint32_t n_tokens, hidden, n_ff, n_used;
  float clamp;
  uint32_t padding;
};
static_assert(sizeof(MoeTilesGateUpArgs) == 72, "as on the other side");

/// Prefill: down of tiles, rows [first_row, first_row + n_rows) of the weight.
struct MoeTilesDownArgs {
  MoeWeight down;
  uint32_t n_tokens, n_ff, first_row, n_rows, out_stride, padding;
};
static_assert(sizeof(MoeTilesDownArgs) == 48, "as on the other side");

/// Prefill: sums over slots, columns [first_row, first_row + n_rows) of the output.
struct MoeSumArgs {
  uint32_t n_used, hidden, first_row, n_rows;
  uint32_t add;  // 1: to what is there, the shared expert's part
};
static_assert(sizeof(MoeSumArgs) == 20, "as on the other side");

}  // namespace grebe
