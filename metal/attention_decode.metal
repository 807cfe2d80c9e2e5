// Attention for few queries [V4 4.6]: the rows of a query are shared out among SIMD-groups, and
// when they are many among threadgroups too.
//
// All heads of a query share one row as key and value. A SIMD-group takes rows into registers (a
// lane holds 8 NC of its channels) and uses each for the score and for the sum, so a row is read
// and decoded once for every kHeads heads:
//   - kHeads 2: q, o and two rows in flight are 32 + 32 + 32 registers a lane at head_dim 512,
//     which fits the 128 that a lane has at most; 4 heads would spill. Decoding then costs about
//     as much as the arithmetic of the two heads. Flash has 32 head pairs: one threadgroup for
//     each core of a large GPU, and 32 reads of every row through the L2 (12 MB a layer at 640
//     rows).
//   - 8 SIMD-groups: what the registers of a core hold nearly twice, and a merge in 16 KiB.
//   - Rows are split over threadgroups only above kSplitRows of ops_attention.cpp: a merge costs
//     one more dispatch and barrier.
#include <metal_stdlib>

#include "attention_rows.h"

using namespace metal;
using namespace grebe;

constant constexpr uint kHeads = 2;
constant constexpr uint kGroups = 8;  // SIMD-groups

// The part of one query's rows that is `work`, for heads 2 group.x and 2 group.x + 1.
//   q        f32[rows, n_heads, head_dim], in place
//   cos, sin f32[rows, rope_dim / 2]
//   partial  f32[n_slots, n_heads, head_dim], then (max, sum) f32[n_slots, n_heads, 2]
// Grid: [pairs of heads, works]. NC: chunks of 8 channels a lane, NC * 256 >= head_dim.
template <uint NC>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_decode(
    constant AttentionArgs& args [[buffer(0)]],
    device const AttentionSource* sources [[buffer(1)]],
    device const AttentionWork* works [[buffer(2)]],
    device float* q [[buffer(3)]],
    device const float* cos [[buffer(4)]],
    device const float* sin [[buffer(5)]],
    device const float* sinks [[buffer(6)]],
    device float* partial [[buffer(7)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint sg [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 stats[kGroups * kHeads];      // (max, sum)
  threadgroup float4 sums[kGroups * kHeads * 64];  // f32[kGroups, kHeads, 256]

  device const AttentionWork* work = works + group.y;
  device const AttentionSource* source = sources + work->source;
  const uint i_query = work->i_query, n_visible = work->n_visible;
  const uint head = group.x * kHeads, n_heads = min(args.n_heads - head, kHeads);
  q += (ulong(work->i_row) * args.n_heads + head) * kHeadDim;
  cos += ulong(work->i_row) * (kRopeDim / 2);
  sin += ulong(work->i_row) * (kRopeDim / 2);

  float4 query[kHeads][2 * NC], o[kHeads][2 * NC];
  float m[kHeads], z[kHeads];
#pragma unroll
  for (uint h = 0; h < kHeads; h++) {
    const uint present = min(h, n_heads - 1);  // an odd last head is done twice
    load_query<NC>(q + ulong(present) * kHeadDim, cos, sin, args.eps, args.scale, lane, query[h]);
#pragma unroll
    for (uint j = 0; j < 2 * NC; j++) o[h][j] = 0.f;
    // The sink is a logit without a value [V4 4.6.5]. Everyone starts from it as the maximum, one
    // SIMD-group counts it.
    const float sink = sinks[head + present] * kLog2E;
    m[h] = fmax(sink, -FLT_MAX);
    z[h] = sg == 0 && work->begin == 0 ? exp2(sink - m[h]) : 0.f;
  }

  // Consecutive rows for each SIMD-group. Addresses are found 32 at a time, one by each lane.
  const uint share = (work->end - work->begin + kGroups - 1) / kGroups;
  const uint begin = min(work->begin + sg * share, work->end);
  const uint end = min(begin + share, work->end);
  // Stands in for padding; its weight is then zero.
  const ulong own = source->new_rows_at + ulong(i_query) * args.row_bytes;
  for (uint base = begin; base < end; base += 32) {
    ulong at = 0;
    if (base + lane < end) {
      at = row_address(args, source, i_query, n_visible, base + lane);
    }
    const uint2 address = as_type<uint2>(at == 0 ? own : at);
    const uint valid = at != 0;
    const uint count = min(end - base, 32u);
    // Two rows at a time: independent sums over lanes, and one update of the maximum for both.
    for (uint r = 0; r < count; r += 2) {
      KvChunk kv[2][NC];
      bool use[2];
#pragma unroll
      for (uint u = 0; u < 2; u++) {
        const uint2 from = simd_shuffle(address, ushort(r + u));
        use[u] = simd_shuffle(valid, ushort(r + u)) != 0;
        device const uchar* row = (device const uchar*)(as_type<ulong>(from));
#pragma unroll
        for (uint j = 0; j < NC; j++) {
          const uint channel = (32 * j + lane) * 8;
          if (channel < kHeadDim) {
            kv[u][j] = kv_chunk(row, channel, kKvKind, kHeadDim, kRopeDim);
          } else {
            kv[u][j].lo = 0.f;
            kv[u][j].hi = 0.f;
            kv[u][j].scale = 0.f;
          }
        }
      }
#pragma unroll
      for (uint h = 0; h < kHeads; h++) {
        float s[2];
        float top = m[h];
#pragma unroll
        for (uint u = 0; u < 2; u++) {
          float sum = 0.f;
#pragma unroll
          for (uint j = 0; j < NC; j++) {
            sum += kv[u][j].scale *
                   (dot(query[h][2 * j], kv[u][j].lo) + dot(query[h][2 * j + 1], kv[u][j].hi));
          }
          s[u] = simd_sum(sum);
          if (use[u]) top = fmax(top, s[u]);
        }
        const float keep = exp2(m[h] - top);
        const float w0 = use[0] ? exp2(s[0] - top) : 0.f;
        const float w1 = use[1] ? exp2(s[1] - top) : 0.f;
        m[h] = top;
        z[h] = z[h] * keep + w0 + w1;
#pragma unroll
        for (uint j = 0; j < NC; j++) {
          const float a = w0 * kv[0][j].scale, b = w1 * kv[1][j].scale;
          o[h][2 * j] = o[h][2 * j] * keep + a * kv[0][j].lo + b * kv[1][j].lo;
          o[h][2 * j + 1] = o[h][2 * j + 1] * keep + a * kv[0][j].hi + b * kv[1][j].hi;
        }
      }
    }
  }

#pragma unroll
  for (uint h = 0; h < kHeads; h++) {
    if (lane == 0) stats[sg * kHeads + h] = float2(m[h], z[h]);
  }
  // The device flag: q is read above and written below.
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  float top[kHeads], sum[kHeads];
#pragma unroll
  for (uint h = 0; h < kHeads; h++) {
    top[h] = stats[h].x;
#pragma unroll
    for (uint g = 1; g < kGroups; g++) top[h] = fmax(top[h], stats[g * kHeads + h].x);
    sum[h] = 0.f;
#pragma unroll
    for (uint g = 0; g < kGroups; g++) {
      sum[h] += stats[g * kHeads + h].y * exp2(stats[g * kHeads + h].x - top[h]);
    }
  }

  // 256 channels of both heads at a time; a thread then adds up two channels of one head.
  const uint h = tid / 128, pair = tid % 128;
#pragma unroll
  for (uint j = 0; j < NC; j++) {
    if (256 * j >= kHeadDim) break;
    if (j != 0) threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
    for (uint i = 0; i < kHeads; i++) {
      const float f = exp2(m[i] - top[i]);
      sums[(sg * kHeads + i) * 64 + 2 * lane] = o[i][2 * j] * f;
      sums[(sg * kHeads + i) * 64 + 2 * lane + 1] = o[i][2 * j + 1] * f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint channel = 256 * j + 2 * pair;
    if (h >= n_heads || channel >= kHeadDim) continue;
    float2 x = 0.f;
#pragma unroll
    for (uint g = 0; g < kGroups; g++) {
      x += ((threadgroup const float2*)(sums))[(g * kHeads + h) * 128 + pair];
    }
    device float* to;
    if (work->slot == kAttentionWhole) {
      x = unrotate(x / (h == 0 ? sum[0] : sum[1]), channel, cos, sin);
      to = q + ulong(h) * kHeadDim;
    } else {
      to = partial + (ulong(work->slot) * args.n_heads + head + h) * kHeadDim;
    }
    *(device float2*)(to + channel) = x;
  }
  if (work->slot != kAttentionWhole && pair == 0 && h < n_heads) {
    device float2* to = (device float2*)(partial + ulong(args.n_slots) * args.n_heads * kHeadDim);
    to[ulong(work->slot) * args.n_heads + head + h] =
        h == 0 ? float2(top[0], sum[0]) : float2(top[1], sum[1]);
  }
}

// One instance a pipeline, by head_dim. The last two are for sizes that no known model has: their
// queries lie in thread memory.
#define INSTANCE(NC, MAX) \
  template [[host_name(   \
      "attention_decode_" #MAX)]] [[kernel]] decltype(attention_decode<NC>) attention_decode<NC>;
INSTANCE(1, 256)
INSTANCE(2, 512)
INSTANCE(4, 1024)
INSTANCE(32, 8192)

// Queries from their partial results. Shapes as above. Grid: [n_heads, merges].
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_merge(
    constant AttentionArgs& args [[buffer(0)]],
    device const AttentionMerge* merges [[buffer(1)]],
    device const float* partial [[buffer(2)]],
    device const float* cos [[buffer(3)]],
    device const float* sin [[buffer(4)]],
    device float* q [[buffer(5)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]]) {
  device const AttentionMerge* merge = merges + group.y;
  const uint head = group.x, n = merge->n_slots;
  const ulong first = ulong(merge->first_slot) * args.n_heads + head;
  device const float2* stats =
      (device const float2*)(partial + ulong(args.n_slots) * args.n_heads * kHeadDim) + first;
  partial += first * kHeadDim;
  cos += ulong(merge->i_row) * (kRopeDim / 2);
  sin += ulong(merge->i_row) * (kRopeDim / 2);
  q += (ulong(merge->i_row) * args.n_heads + head) * kHeadDim;

  float top = stats[0].x;
  for (uint s = 1; s < n; s++) top = fmax(top, stats[ulong(s) * args.n_heads].x);
  for (uint channel = 2 * tid; channel < kHeadDim; channel += 512) {
    float2 x = 0.f;
    float sum = 0.f;
    for (uint s = 0; s < n; s++) {
      const ulong at = ulong(s) * args.n_heads;
      const float2 stat = stats[at];
      const float f = exp2(stat.x - top);
      sum += stat.y * f;
      x += f * *(device const float2*)(partial + at * kHeadDim + channel);
    }
    *(device float2*)(q + channel) = unrotate(x / sum, channel, cos, sin);
  }
}
