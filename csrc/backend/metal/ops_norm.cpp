#include <algorithm>

#include "args/norm_args.h"
#include "args/route_args.h"
#include "backend/metal/ops.h"

namespace grebe::metal {

void rms_norm(Recorder& r, float* x, const float* weight, int64_t n, int64_t width, float eps) {
  const RmsNormArgs args{static_cast<uint32_t>(width), eps};
  const uint64_t row_bytes = static_cast<uint64_t>(width) * sizeof(float);
  // Four numbers a thread: enough loads in flight, and few SIMD-groups to wait for.
  const uint32_t threads =
      static_cast<uint32_t>(std::clamp<int64_t>((width + 127) / 128 * 32, 32, 1024));
  r.dispatch("norm", "rms_norm")
      .args(args)
      .read_write(1, x, n * row_bytes)
      .read(2, weight, row_bytes)
      .run(n, 1, 1, threads);
}

void q_norm_rope(
    Recorder& r,
    float* q,
    const RopeTable& rope,
    int64_t n,
    int32_t n_heads,
    int32_t head_dim,
    float eps) {
  const uint64_t vectors = static_cast<uint64_t>(n) * n_heads;
  const QNormRopeArgs args{
      static_cast<uint32_t>(n_heads),
      static_cast<uint32_t>(vectors),
      static_cast<uint32_t>(head_dim),
      static_cast<uint32_t>(rope.half),
      eps};
  const uint64_t table_bytes = static_cast<uint64_t>(n) * rope.half * sizeof(float);
  r.dispatch("norm", "q_norm_rope")
      .args(args)
      .read_write(1, q, vectors * head_dim * sizeof(float))
      .read(2, rope.cos, table_bytes)
      .read(3, rope.sin, table_bytes)
      .run((vectors + 7) / 8, 1, 1, 256);
}

void route(
    Recorder& r,
    const Backend::Route& p,
    const float* logits,
    int64_t n,
    int32_t* experts,
    float* weights) {
  const uint64_t rows = static_cast<uint64_t>(n), picks = rows * p.n_used;
  const RouteArgs args{
      static_cast<uint32_t>(n),
      static_cast<uint32_t>(p.n_experts),
      static_cast<uint32_t>(p.n_used),
      p.scale};
  const bool by_token = p.tid2eid != nullptr;
  r.dispatch("route", "route")
      .constant(0, by_token)
      .constant(1, p.n_experts <= 512)  // 32 * kRouteCached
      .args(args)
      .read(1, logits, rows * p.n_experts * sizeof(float))
      .read(2, by_token ? nullptr : p.bias, p.n_experts * sizeof(float))
      .weight(3, p.tid2eid)
      .read(4, by_token ? p.tokens : nullptr, rows * sizeof(int32_t))
      .write(5, experts, picks * sizeof(int32_t))
      .write(6, weights, picks * sizeof(float))
      .run(n, 1, 1, 32);
}

}  // namespace grebe::metal
