// Routed and shared experts of many tokens: prefill [V4 4.10].
//
// Pairs (token, slot) are sorted by expert on the device; then an expert's tokens are multiplied
// with its weights in tiles, gate and up together, then down into a part for each pair, and the
// parts of a token are summed. The host knows no counts: the tables of tiles has room for the worst
// case, n_pairs / tile + n_experts, and a threadgroup with an empty entry ends at once. The shared
// expert goes through the same kernels with all tokens as its own (kSorted 0).
#include <metal_stdlib>

#include "args/moe_args.h"
#include "gemm_tile.h"
#include "swiglu.h"

using namespace metal;

constant uint kGate [[function_constant(0)]];  // or down
constant uint kUp [[function_constant(1)]];
constant uint kSorted [[function_constant(2)]];

// experts i32[n_pairs] -> sorted i32[n_pairs], the pairs in the order of experts, then of pairs;
// tiles [n_pairs / tile_tokens + n_experts]. One SIMD-group an expert reads all pairs twice (some
// 50 KB at 2,048 tokens): it needs to know of the others only how many pairs come before its own.
// Tile i of expert e is entry (before e) / tile_tokens + e + i: no two experts meet, and each has
// room for its last, partly filled tile.
// Grid: [n_experts / SIMD-groups of a threadgroup].
[[kernel, max_total_threads_per_threadgroup(256)]] void moe_sort(
    constant MoeGroupArgs& a [[buffer(0)]],
    device const int* experts [[buffer(1)]],
    device int* sorted [[buffer(2)]],
    device MoeTile* tiles [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint sg [[simdgroup_index_in_threadgroup]],
    uint n_sg [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint e = group * n_sg + sg;
  if (e >= a.n_experts) return;
  uint before = 0, count = 0;
  for (uint i = lane; i < a.n_pairs; i += 32) {
    const uint expert = min(uint(experts[i]), a.n_experts - 1);
    before += expert < e ? 1 : 0;
    count += expert == e ? 1 : 0;
  }
  before = simd_sum(before);
  count = simd_sum(count);
  uint at = before;
  for (uint first = 0; first < a.n_pairs && at < before + count; first += 32) {
    const uint i = first + lane;
    const bool own = i < a.n_pairs && min(uint(experts[i]), a.n_experts - 1) == e;
    const uint place = simd_prefix_exclusive_sum(own ? 1u : 0u);
    if (own) sorted[at + place] = int(i);
    at += simd_sum(own ? 1u : 0u);
  }
  const uint first_tile = before / a.tile_tokens + e;
  const uint end_tile = (before + count) / a.tile_tokens + e + 1;
  for (uint i = first_tile + lane; i < end_tile; i += 32) {
    const uint done = (i - first_tile) * a.tile_tokens;
    MoeTile tile;
    tile.expert = e;
    tile.first = before + done;
    tile.count = done < count ? min(count - done, a.tile_tokens) : 0;
    tiles[i] = tile;
  }
}

// Entry i of the table; of the shared expert, the i-th kTokens of all tokens.
GREBE_INLINE MoeTile tile_at(device const MoeTile* tiles, uint i, uint tokens, uint n_tokens) {
  MoeTile tile;
  if (kSorted) {
    tile.expert = tiles[i].expert;
    tile.first = tiles[i].first;
    tile.count = tiles[i].count;
  } else {
    tile.expert = 0;
    tile.first = i * tokens;
    tile.count = min(tokens, n_tokens - tile.first);
  }
  return tile;
}

// h[p, i] = swiglu(gate row i x, up row i x) * weight for the p-th of the sorted pairs. x
// f32[n_tokens, hidden], weights f32[n_pairs], h E[n_pairs, n_ff]. A tile of weights is 32 rows of
// gate above the same 32 of up, so both products of a value meet in one threadgroup.
// Grid: [n_ff / 32, tiles]: threadgroups that run at the same time share x.
template <class E, uint kTokens>
[[kernel, max_total_threads_per_threadgroup(128)]] void moe_tiles_gate_up(
    constant MoeTilesGateUpArgs& a [[buffer(0)]],
    device const uchar* gate [[buffer(1)]],
    device const uchar* up [[buffer(2)]],
    device const uchar* gate_scales [[buffer(3)]],
    device const uchar* up_scales [[buffer(4)]],
    device const float* x [[buffer(5)]],
    device const float* weights [[buffer(6)]],
    device const int* sorted [[buffer(7)]],
    device const MoeTile* tiles [[buffer(8)]],
    device E* h [[buffer(9)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]],
    uint sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float4 memory[TileShape<E, kTokens>::kBytes / 16];
  threadgroup uchar* shared = (threadgroup uchar*)memory;
  const MoeTile tile = tile_at(tiles, group.y, kTokens, a.n_tokens);
  if (tile.count == 0) return;
  const uint kHalf = kTileRows / 2, first_row = group.x * kHalf;
  const bool is_up = i_thread / 2 >= kHalf;
  const uint row = min(first_row + i_thread / 2 % kHalf, a.n_ff - 1);
  const uint place = tile.first + min(i_thread / (128 / kTokens), tile.count - 1);
  const uint token = kSorted ? uint(sorted[place]) / a.n_used : place;
  TileInput<float> in;
  in.n_in = a.hidden;
  in.x = x + ulong(token) * a.hidden;
  if (is_up) {
    in.type = kUp;
    in.w = up + tile.expert * a.up.expert_bytes + row * a.up.row_bytes;
    in.scales = up_scales + ulong(tile.expert) * a.up.expert_scale_bytes +
                ulong(row / 128) * a.up.scale_stride;
  } else {
    in.type = kGate;
    in.w = gate + tile.expert * a.gate.expert_bytes + row * a.gate.row_bytes;
    in.scales = gate_scales + ulong(tile.expert) * a.gate.expert_scale_bytes +
                ulong(row / 128) * a.gate.scale_stride;
  }
  if (kUp == kGate) in.type = kGate;  // one case of dequant16 remains
  TileSums<kTokens> sums;
  tile_product<E, kTokens>(in, i_thread, sg, shared, sums);
  threadgroup const float* out = tile_outputs(sums, sg, shared);
  const uint r = i_thread % kHalf;
  if (first_row + r >= a.n_ff) return;
  for (uint t = i_thread / kHalf; t < tile.count; t += kTileThreads / kHalf) {
    const uint p = tile.first + t;
    const float weight = kSorted ? weights[sorted[p]] : 1.f;
    h[ulong(p) * a.n_ff + first_row + r] =
        E(swiglu(out[t * kTileRows + r], out[t * kTileRows + kHalf + r], a.clamp, weight));
  }
}

// out[pair, i] = down row first_row + i times h[p], p the pair's place in the sorted order. h
// E[n_pairs, n_ff], out f32[n_pairs, out_stride].
// Grid: [n_rows / 64, tiles].
template <class E, uint kTokens>
[[kernel, max_total_threads_per_threadgroup(128)]] void moe_tiles_down(
    constant MoeTilesDownArgs& a [[buffer(0)]],
    device const uchar* down [[buffer(1)]],
    device const uchar* scales [[buffer(2)]],
    device const E* h [[buffer(3)]],
    device const int* sorted [[buffer(4)]],
    device const MoeTile* tiles [[buffer(5)]],
    device float* out [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]],
    uint sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float4 memory[TileShape<E, kTokens>::kBytes / 16];
  threadgroup uchar* shared = (threadgroup uchar*)memory;
  const MoeTile tile = tile_at(tiles, group.y, kTokens, a.n_tokens);
  if (tile.count == 0) return;
  const uint first_row = group.x * kTileRows;
  const uint row = a.first_row + min(first_row + i_thread / 2, a.n_rows - 1);
  const uint place = tile.first + min(i_thread / (128 / kTokens), tile.count - 1);
  TileInput<E> in;
  in.type = kGate;
  in.w = down + tile.expert * a.down.expert_bytes + row * a.down.row_bytes;
  in.scales = scales + ulong(tile.expert) * a.down.expert_scale_bytes +
              ulong(row / 128) * a.down.scale_stride;
  in.x = h + ulong(place) * a.n_ff;
  in.n_in = a.n_ff;
  TileSums<kTokens> sums;
  tile_product<E, kTokens>(in, i_thread, sg, shared, sums);
  threadgroup const float* result = tile_outputs(sums, sg, shared);
  const uint r = i_thread % kTileRows;
  if (first_row + r >= a.n_rows) return;
  for (uint t = i_thread / kTileRows; t < tile.count; t += kTileThreads / kTileRows) {
    const uint p = tile.first + t, pair = kSorted ? uint(sorted[p]) : p;
    out[ulong(pair) * a.out_stride + first_row + r] = result[t * kTileRows + r];
  }
}

#define GREBE_TILES(kType, kTokens)                                                         \
  template [[host_name("moe_tiles_gate_up_" #kType "_t" #kTokens)]]                         \
  [[kernel]] decltype(moe_tiles_gate_up<kType, kTokens>) moe_tiles_gate_up<kType, kTokens>; \
  template [[host_name("moe_tiles_down_" #kType "_t" #kTokens)]]                            \
  [[kernel]] decltype(moe_tiles_down<kType, kTokens>) moe_tiles_down<kType, kTokens>;
GREBE_TILES(half, 16)
GREBE_TILES(half, 32)
GREBE_TILES(half, 64)
GREBE_TILES(float, 16)
GREBE_TILES(float, 32)
GREBE_TILES(float, 64)

// y[t, first_row + i] = sum over slots of parts[t, slot, i], added to what is there if asked.
// parts f32[n_tokens, n_used, n_rows], y f32[n_tokens, hidden]. Grid: [n_rows / 256, n_tokens].
[[kernel, max_total_threads_per_threadgroup(256)]] void moe_sum(
    constant MoeSumArgs& a [[buffer(0)]],
    device const float* parts [[buffer(1)]],
    device float* y [[buffer(2)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint i_thread [[thread_index_in_threadgroup]]) {
  const uint i = group.x * 256 + i_thread;
  if (i >= a.n_rows) return;
  device float* to = y + ulong(group.y) * a.hidden + a.first_row + i;
  device const float* from = parts + ulong(group.y) * a.n_used * a.n_rows + i;
  float sum = a.add ? *to : 0.f;
  for (uint slot = 0; slot < a.n_used; slot++) sum += from[ulong(slot) * a.n_rows];
  *to = sum;
}
