// Routed and shared experts: metal/moe.metal for a few tokens, metal/moe_prefill.metal for many.
#include <algorithm>
#include <string>

#include "args/moe_args.h"
#include "backend/metal/ops.h"
#include "backend/metal/stream_update.h"
#include "backend/metal/weight_launch.h"
#include "core/error.h"

namespace grebe::metal {
namespace {

constexpr int32_t kMaxRoutedExperts = 32 * 16;  // that route.h keeps in registers

// Down results that wait for their sum, twice: one slab is summed while the next is made.
constexpr int64_t kSlabBytes = int64_t{32} << 20;

MoeWeight moe_weight(const Weight* w) {
  if (!w) return {};
  const uint32_t stride = scale_stride(*w);
  return {
      w->row_bytes(),
      w->expert_bytes(),
      stride,
      stride * static_cast<uint32_t>((w->n_out + 127) / 128)};
}

const uint8_t* data(const Weight* w) { return w ? w->data : nullptr; }
const uint8_t* scale(const Weight* w) { return w ? w->scale : nullptr; }
uint64_t floats(int64_t n) { return sizeof(float) * static_cast<uint64_t>(n); }

// A weight that is absent takes the type of another, so that it costs no pipeline of its own.
WeightType type_or(const Weight* w, const Weight* other) {
  return weight_type((w ? w : other)->dtype);
}

uint64_t grid_bytes_of(const Weight* a, const Weight* b) {
  if (!a) return 0;
  return grid_table_bytes(a->dtype) + (b->dtype != a->dtype ? grid_table_bytes(b->dtype) : 0);
}

// The shared expert may be absent; `weights` are then only those of the routed ones.
struct MoeOp {
  const Backend::Moe& p;
  const float* x;
  int32_t* experts;
  float* weights;
  int64_t n;
  float* y;

  int64_t hidden() const { return p.gate->n_in; }
  int64_t n_ff() const { return p.gate->n_out; }
  int64_t n_shared_ff() const { return p.shared_gate ? p.shared_gate->n_out : 0; }
  int64_t n_pairs() const { return n * p.n_used; }

  void check() const {
    const auto fits = [&](const Weight& w, int64_t in, int64_t out) {
      return w.n_in == in && w.n_out == out;
    };
    GREBE_ASSERT(n >= 1 && p.n_used >= 1);
    GREBE_ASSERT(fits(*p.up, hidden(), n_ff()) && fits(*p.down, n_ff(), hidden()));
    if (!p.shared_gate) return;
    GREBE_ASSERT(fits(*p.shared_gate, hidden(), n_shared_ff()));
    GREBE_ASSERT(fits(*p.shared_up, hidden(), n_shared_ff()));
    GREBE_ASSERT(fits(*p.shared_down, n_shared_ff(), hidden()));
  }

  MoeShape shape() const {
    return {
        static_cast<uint32_t>(n),
        static_cast<uint32_t>(hidden()),
        static_cast<uint32_t>(n_ff()),
        static_cast<uint32_t>(n_shared_ff()),
        static_cast<uint32_t>(p.gate->n_experts),
        static_cast<uint32_t>(p.n_used)};
  }
};

// ---- a few tokens

void run_rows(
    Recorder& r,
    const MoeOp& op,
    const Backend::Route* route,
    const float* logits,
    StreamUpdate* update) {
  const Backend::Moe& p = op.p;
  const int64_t n = op.n, n_experts = p.gate->n_experts;
  const uint32_t i_tile = n == 1 ? 0 : n == 2 ? 1 : n <= 4 ? 2 : 3;
  const int64_t n_h = op.n_pairs() * op.n_ff() + n * op.n_shared_ff();
  float* h = static_cast<float*>(r.scratch(floats(n_h)));

  {
    const char* const kernels[] = {
        "moe_gate_up_t1", "moe_gate_up_t2", "moe_gate_up_t4", "moe_gate_up_t8"};
    const uint64_t grid_bytes =
        std::max(grid_bytes_of(p.gate, p.up), grid_bytes_of(p.shared_gate, p.shared_up));
    const uint32_t n_sg = grid_bytes > 0 ? kGridSimdGroups : kSimdGroups;
    const int64_t per_group = 2 * n_sg, shared_per_group = (i_tile == 3 ? 1 : 2) * n_sg;
    MoeGateUpArgs a{};
    a.gate = moe_weight(p.gate);
    a.up = moe_weight(p.up);
    a.shared_gate = moe_weight(p.shared_gate);
    a.shared_up = moe_weight(p.shared_up);
    a.shape = op.shape();
    a.clamp = p.clamp;
    a.shared_clamp = p.shared_clamp;
    a.route = {a.shape.n_tokens, a.shape.n_experts, a.shape.n_used, route ? route->scale : 0.f};
    a.groups_per_expert = static_cast<uint32_t>((op.n_ff() + per_group - 1) / per_group);
    a.n_routed_groups = static_cast<uint32_t>(op.n_pairs() * a.groups_per_expert);
    const uint32_t how = !route ? kRouteDone : route->tid2eid ? kRouteTable : kRouteScore;
    bool aligned = true;
    for (const Weight* w : {p.gate, p.up, p.shared_gate, p.shared_up}) {
      if (w) aligned &= rows_aligned(*w);
    }
    auto dispatch = r.dispatch("moe", kernels[i_tile]);
    dispatch.constant(0, weight_type(p.gate->dtype))
        .constant(1, weight_type(p.up->dtype))
        .constant(2, type_or(p.shared_gate, p.gate))
        .constant(3, type_or(p.shared_up, p.up))
        .constant(6, how)
        .constant(kAlignedRowsConstant, aligned ? 1 : 0)
        .args(a)
        .weight(1, p.gate->data)
        .weight(2, p.up->data)
        .weight(3, data(p.shared_gate))
        .weight(4, data(p.shared_up))
        .weight(5, p.gate->scale)
        .weight(6, p.up->scale)
        .weight(7, scale(p.shared_gate))
        .weight(8, scale(p.shared_up))
        .read(9, op.x, floats(n * op.hidden()));
    if (route) {
      dispatch.write(10, op.experts, sizeof(int32_t) * op.n_pairs())
          .write(11, op.weights, floats(op.n_pairs()))
          .read(13, logits, floats(n * n_experts))
          .read(14, route->bias, floats(n_experts))
          .weight(15, route->tid2eid)
          .read(16, route->tid2eid ? route->tokens : nullptr, sizeof(int32_t) * n);
    } else {
      dispatch.read(10, op.experts, sizeof(int32_t) * op.n_pairs())
          .read(11, op.weights, floats(op.n_pairs()))
          .read(13, nullptr, 0)
          .read(14, nullptr, 0)
          .read(15, nullptr, 0)
          .read(16, nullptr, 0);
    }
    uint64_t bytes = op.n_pairs() * (rows_bytes(*p.gate, op.n_ff()) + rows_bytes(*p.up, op.n_ff()));
    int64_t groups = a.n_routed_groups;
    if (p.shared_gate) {
      bytes +=
          rows_bytes(*p.shared_gate, op.n_shared_ff()) + rows_bytes(*p.shared_up, op.n_shared_ff());
      groups += (op.n_shared_ff() + shared_per_group - 1) / shared_per_group;
    }
    dispatch.write(12, h, floats(n_h))
        .threadgroup_memory(std::max<uint64_t>(grid_bytes, 16))
        .reads_bytes(bytes)
        .run(groups, 1, 1, n_sg * 32);
  }

  const char* const kernels[] = {"moe_down_t1", "moe_down_t2", "moe_down_t4", "moe_down_t8"};
  const Weight* shared = p.shared_down ? p.shared_down : p.down;
  const uint64_t grid_bytes = grid_bytes_of(p.down, shared);
  const uint32_t n_sg = grid_bytes > 0 ? kGridSimdGroups : kSimdGroups;
  const int64_t per_group = (i_tile == 3 ? 2 : 4) * n_sg;
  MoeDownArgs a{};
  a.down = moe_weight(p.down);
  a.shared_down = moe_weight(p.shared_down);
  a.shape = op.shape();
  const int64_t n_groups = (op.hidden() + per_group - 1) / per_group;
  auto dispatch = r.dispatch("moe", kernels[i_tile]);
  if (update) {
    a.update =
        bind_update(r, dispatch, *update, static_cast<uint32_t>(n_groups), {8, 9, 10, 11, 12});
  } else {
    no_update(dispatch);
    for (uint32_t i = 8; i <= 12; i++) dispatch.read(i, nullptr, 0);
  }
  dispatch.constant(4, weight_type(p.down->dtype))
      .constant(5, weight_type(shared->dtype))
      .constant(kAlignedRowsConstant, rows_aligned(*p.down) && rows_aligned(*shared) ? 1 : 0)
      .args(a)
      .weight(1, p.down->data)
      .weight(2, data(p.shared_down))
      .weight(3, p.down->scale)
      .weight(4, scale(p.shared_down))
      .read(5, h, floats(n_h))
      .read(6, op.experts, sizeof(int32_t) * op.n_pairs())
      .write(7, op.y, floats(n * op.hidden()))
      .threadgroup_memory(std::max<uint64_t>(grid_bytes + update_bytes(update, n_sg), 16))
      .reads_bytes(
          op.n_pairs() * rows_bytes(*p.down, op.hidden()) +
          (p.shared_down ? rows_bytes(*p.shared_down, op.hidden()) : 0))
      .run(n_groups, 1, 1, n_sg * 32);
}

// ---- many tokens

// Kernel names carry the element of the tiles and their tokens.
struct TileKernels {
  std::string suffix;
  uint32_t tokens;
  uint64_t element;  // bytes of h

  // One element for all three matrices: h is written by two and read by the third. Without a clamp
  // nothing keeps h = silu(g) u within the halves; with one of 128 it is at most 16,384 times the
  // weight of an expert.
  TileKernels(
      bool exact,
      const Weight& gate,
      const Weight& up,
      const Weight& down,
      float clamp,
      uint32_t tokens)
      : tokens(tokens) {
    bool is_float = !(clamp > 0 && clamp <= 128);
    for (const Weight* w : {&gate, &up, &down}) is_float |= float_tiles(exact, w->dtype);
    suffix = (is_float ? "_float_t" : "_half_t") + std::to_string(tokens);
    element = is_float ? 4 : 2;
  }
};

// An expert has n_pairs / n_experts tokens on average; half-empty tiles cost as much as full ones.
uint32_t expert_tile_tokens(int64_t n_pairs, int64_t n_experts) {
  const int64_t average = n_pairs / n_experts;
  return average <= 12 ? 16 : average <= 32 ? 32 : 64;
}

// Sorted pairs and their tiles; null: the shared expert, whose pairs are the tokens.
struct SortedPairs {
  int32_t* sorted = nullptr;
  MoeTile* tiles = nullptr;
  int64_t n_pairs = 0, n_tiles = 0;

  uint64_t sorted_bytes() const { return sorted ? sizeof(int32_t) * n_pairs : 0; }
  uint64_t tiles_bytes() const { return tiles ? sizeof(MoeTile) * n_tiles : 0; }
};

void run_gate_up(
    Recorder& r,
    const MoeOp& op,
    const Weight& gate,
    const Weight& up,
    float clamp,
    const SortedPairs& pairs,
    const TileKernels& kernels,
    void* h) {
  MoeTilesGateUpArgs a{};
  a.gate = moe_weight(&gate);
  a.up = moe_weight(&up);
  a.n_tokens = static_cast<uint32_t>(op.n);
  a.hidden = static_cast<uint32_t>(op.hidden());
  a.n_ff = static_cast<uint32_t>(gate.n_out);
  a.n_used = static_cast<uint32_t>(op.p.n_used);
  a.clamp = clamp;
  const std::string name = "moe_tiles_gate_up" + kernels.suffix;
  const float* weights = pairs.sorted ? op.weights : nullptr;
  const int64_t n_read = std::min(gate.n_experts, pairs.n_pairs);
  r.dispatch("moe_prefill", name.c_str())
      .constant(0, weight_type(gate.dtype))
      .constant(1, weight_type(up.dtype))
      .constant(2, pairs.sorted ? 1 : 0)
      .args(a)
      .weight(1, gate.data)
      .weight(2, up.data)
      .weight(3, gate.scale)
      .weight(4, up.scale)
      .read(5, op.x, floats(op.n * op.hidden()))
      .read(6, weights, floats(pairs.n_pairs))
      .read(7, pairs.sorted, pairs.sorted_bytes())
      .read(8, pairs.tiles, pairs.tiles_bytes())
      .write(9, h, kernels.element * pairs.n_pairs * gate.n_out)
      .reads_bytes(n_read * (rows_bytes(gate, gate.n_out) + rows_bytes(up, up.n_out)))
      .run((gate.n_out + kTileRows / 2 - 1) / (kTileRows / 2), pairs.n_tiles, 1, kTileThreads);
}

// Rows [first_row, first_row + n_rows) of down into out f32[n_pairs, out_stride].
void run_down(
    Recorder& r,
    const MoeOp& op,
    const Weight& down,
    const SortedPairs& pairs,
    const TileKernels& kernels,
    const void* h,
    int64_t first_row,
    int64_t n_rows,
    float* out,
    int64_t out_stride) {
  MoeTilesDownArgs a{};
  a.down = moe_weight(&down);
  a.n_tokens = static_cast<uint32_t>(op.n);
  a.n_ff = static_cast<uint32_t>(down.n_in);
  a.first_row = static_cast<uint32_t>(first_row);
  a.n_rows = static_cast<uint32_t>(n_rows);
  a.out_stride = static_cast<uint32_t>(out_stride);
  const std::string name = "moe_tiles_down" + kernels.suffix;
  r.dispatch("moe_prefill", name.c_str())
      .constant(0, weight_type(down.dtype))
      .constant(1, weight_type(down.dtype))
      .constant(2, pairs.sorted ? 1 : 0)
      .args(a)
      .weight(1, down.data)
      .weight(2, down.scale)
      .read(3, h, kernels.element * pairs.n_pairs * down.n_in)
      .read(4, pairs.sorted, pairs.sorted_bytes())
      .read(5, pairs.tiles, pairs.tiles_bytes())
      .write(6, out, floats(pairs.n_pairs * out_stride))
      .reads_bytes(std::min(down.n_experts, pairs.n_pairs) * rows_bytes(down, n_rows))
      .run((n_rows + kTileRows - 1) / kTileRows, pairs.n_tiles, 1, kTileThreads);
}

SortedPairs sort_pairs(Recorder& r, const MoeOp& op, uint32_t tile_tokens) {
  constexpr uint32_t kSorters = 8;  // SIMD-groups of a threadgroup
  const int64_t n_experts = op.p.gate->n_experts;
  SortedPairs pairs;
  pairs.n_pairs = op.n_pairs();
  pairs.n_tiles = pairs.n_pairs / tile_tokens + n_experts;
  pairs.sorted = static_cast<int32_t*>(r.scratch(sizeof(int32_t) * pairs.n_pairs));
  pairs.tiles = static_cast<MoeTile*>(r.scratch(sizeof(MoeTile) * pairs.n_tiles));
  const MoeGroupArgs a{
      static_cast<uint32_t>(pairs.n_pairs), static_cast<uint32_t>(n_experts), tile_tokens};
  r.dispatch("moe_prefill", "moe_sort")
      .args(a)
      .read(1, op.experts, sizeof(int32_t) * pairs.n_pairs)
      .write(2, pairs.sorted, pairs.sorted_bytes())
      .write(3, pairs.tiles, pairs.tiles_bytes())
      .run((n_experts + kSorters - 1) / kSorters, 1, 1, kSorters * 32);
  return pairs;
}

void run_tiles(Recorder& r, const MoeOp& op) {
  const Backend::Moe& p = op.p;
  const TileKernels routed(
      r.exact(),
      *p.gate,
      *p.up,
      *p.down,
      p.clamp,
      expert_tile_tokens(op.n_pairs(), p.gate->n_experts));
  const SortedPairs pairs = sort_pairs(r, op, routed.tokens);
  void* h = r.scratch(routed.element * op.n_pairs() * op.n_ff());
  if (p.shared_gate) {
    const TileKernels shared(
        r.exact(), *p.shared_gate, *p.shared_up, *p.shared_down, p.shared_clamp, tile_tokens(op.n));
    SortedPairs tokens;
    tokens.n_pairs = op.n;
    tokens.n_tiles = (op.n + shared.tokens - 1) / shared.tokens;
    void* shared_h = r.scratch(shared.element * op.n * op.n_shared_ff());
    run_gate_up(r, op, *p.shared_gate, *p.shared_up, p.shared_clamp, tokens, shared, shared_h);
    run_gate_up(r, op, *p.gate, *p.up, p.clamp, pairs, routed, h);
    run_down(r, op, *p.shared_down, tokens, shared, shared_h, 0, op.hidden(), op.y, op.hidden());
  } else {
    run_gate_up(r, op, *p.gate, *p.up, p.clamp, pairs, routed, h);
  }

  const int64_t whole = op.hidden();
  const int64_t fitting = kSlabBytes / 4 / op.n_pairs() / kTileRows * kTileRows;
  const int64_t slab = std::min(whole, std::max<int64_t>(kTileRows, fitting));
  float* parts[2] = {};
  for (int64_t i = 0; i * slab < whole; i++) {
    const int64_t first = i * slab, n_rows = std::min(slab, whole - first);
    float*& part = parts[i % 2];
    if (!part) part = static_cast<float*>(r.scratch(floats(op.n_pairs() * slab)));
    run_down(r, op, *p.down, pairs, routed, h, first, n_rows, part, n_rows);
    const MoeSumArgs a{
        static_cast<uint32_t>(p.n_used),
        static_cast<uint32_t>(op.hidden()),
        static_cast<uint32_t>(first),
        static_cast<uint32_t>(n_rows),
        p.shared_gate ? 1u : 0u};
    r.dispatch("moe_prefill", "moe_sum")
        .args(a)
        .read(1, part, floats(op.n_pairs() * n_rows))
        .read_write(2, op.y, floats(op.n * op.hidden()))
        .run((n_rows + 255) / 256, op.n, 1, 256);
  }
}

}  // namespace

bool moe_can_route(const Backend::Route& route, int64_t n) {
  return n <= kMatvecTokens && route.n_experts <= kMaxRoutedExperts;
}

void moe(
    Recorder& r,
    const Backend::Moe& p,
    const float* x,
    int32_t* experts,
    float* weights,
    int64_t n,
    float* y,
    const Backend::Route* route,
    const float* logits,
    StreamUpdate* update) {
  const MoeOp op{p, x, experts, weights, n, y};
  op.check();
  if (n <= kMatvecTokens) {
    run_rows(r, op, route, logits, update);
  } else {
    GREBE_ASSERT(!route && !update);
    run_tiles(r, op);
  }
}

}  // namespace grebe::metal
