// The router as a dispatch of its own.
#include <metal_stdlib>

#include "args/route_args.h"
#include "route.h"

using namespace metal;
using namespace grebe;

constant uint kByToken [[function_constant(0)]];  // 1: tid2eid chooses, by the token's id
constant uint kCached [[function_constant(1)]];   // 1: n_experts <= 32 * kRouteCached

// logits f32[n, n_experts], bias f32[n_experts] or tid2eid i32[vocab, n_used] with tokens i32[n] ->
// experts i32[n, n_used], weights f32[n, n_used]. A SIMD-group has a token: choosing is n_used
// reductions over all experts, and a second SIMD-group would only add barriers to each. Grid: [n],
// 32 threads.
[[kernel, max_total_threads_per_threadgroup(32)]] void route(
    constant RouteArgs& a [[buffer(0)]],
    device const float* logits [[buffer(1)]],
    device const float* bias [[buffer(2)]],
    device const int* tid2eid [[buffer(3)]],
    device const int* tokens [[buffer(4)]],
    device int* experts [[buffer(5)]],
    device float* weights [[buffer(6)]],
    uint t [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup int picks[kRouteMaxUsed];
  threadgroup float mix[kRouteMaxUsed];
  device const int* chosen = kByToken != 0 ? tid2eid + ulong(tokens[t]) * a.n_used : nullptr;
  route_token(a, logits + ulong(t) * a.n_experts, bias, chosen, kCached != 0, picks, mix, lane);
  for (uint k = lane; k < a.n_used; k += 32) {
    experts[t * a.n_used + k] = picks[k];
    weights[t * a.n_used + k] = mix[k];
  }
}
