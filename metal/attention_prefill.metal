// Attention for many queries [V4 4.6]: one threadgroup is one query with 8 MB of its heads. All
// heads share each row as key and value, so a single query is already a matrix product: scores
// S[heads, rows] = Q K^T, result O[heads, channels] = P K, by simdgroup matrices.
//
//   - Queries are not put together: the window and the selection differ between neighbours, and
//     the heads of one fill the matrices. The threadgroups of a query's heads run side by side and
//     find its rows in the cache.
//   - A SIMD-group owns 64 channels: their part of the queries (in registers), of O, and of the
//     sum over channels in S; the parts of S are added through threadgroup memory. For head_dim
//     512 that makes 8 SIMD-groups.
//   - 16 heads (MB 2): queries and O are 16 + 32 registers a lane in half precision, 32 + 32 in
//     float, so that two or three threadgroups share a core and one multiplies while another
//     decodes rows. 32 heads would decode each row half as often (about 15 % of the work) but need
//     120 registers, which leaves one threadgroup a core.
//   - 16 rows a tile in half precision, 8 in float: 16 KiB at head_dim 512; with the parts of S
//     27 KiB.
// head_dim is at most 512; larger ones take the decode kernel.
#include <metal_stdlib>

#include "attention_rows.h"

using namespace metal;
using namespace grebe;

constant constexpr uint kMaxHeadDim = 512;
constant constexpr uint kMaxGroups = kMaxHeadDim / 64;
// Rows of a tile begin 16 bytes further in the banks of threadgroup memory each, so that the eight
// rows of a matrix are read from different banks.
constant constexpr uint kTilePad = 16;

static inline void store4(threadgroup half* to, float4 x) { *(threadgroup half4*)(to) = half4(x); }
static inline void store4(threadgroup float* to, float4 x) { *(threadgroup float4*)(to) = x; }

// Heads 8 MB group.x and following of the query of works[group.y], whose rows are [0, work.end).
//   q        f32[rows, n_heads, head_dim], in place
//   cos, sin f32[rows, rope_dim / 2]
// T: of the matrices' elements; sums are float. RB: blocks of 8 rows in a tile.
// Grid: [groups of 8 MB heads, works]; head_dim / 64 SIMD-groups, rounded up.
template <typename T, uint MB, uint RB>
[[kernel, max_total_threads_per_threadgroup(256)]] void attention_prefill(
    constant AttentionArgs& args [[buffer(0)]],
    device const AttentionSource* sources [[buffer(1)]],
    device const AttentionWork* works [[buffer(2)]],
    device float* q [[buffer(3)]],
    device const float* cos [[buffer(4)]],
    device const float* sin [[buffer(5)]],
    device const float* sinks [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint tid [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint sg [[simdgroup_index_in_threadgroup]]) {
  constexpr uint kHeads = 8 * MB, kRows = 8 * RB;
  constexpr uint kTileBytes = kRows * (kMaxHeadDim * sizeof(T) + kTilePad);
  constexpr uint kPart = kRows + 4, kP = kRows + kTilePad / sizeof(T);  // strides
  // Rows T[kRows, stride]; also queries T[8, stride] and results f32[8, head_dim] on their way.
  threadgroup float4 storage[kTileBytes / 16];
  threadgroup float part[kMaxGroups * kHeads * kPart];
  threadgroup float4 p_storage[kHeads * kP * sizeof(T) / 16];
  threadgroup float top[kHeads], sum[kHeads], keep[kHeads], used[kRows];
  threadgroup T* tile = (threadgroup T*)(storage);
  threadgroup T* p = (threadgroup T*)(p_storage);

  const uint n_groups = (kHeadDim + 63) / 64, stride = kHeadDim + kTilePad / sizeof(T);
  device const AttentionWork* work = works + group.y;
  device const AttentionSource* source = sources + work->source;
  const uint i_query = work->i_query, n_visible = work->n_visible, n_rows = work->end;
  const uint head = group.x * kHeads, n_heads = min(args.n_heads - head, kHeads);
  q += (ulong(work->i_row) * args.n_heads + head) * kHeadDim;
  cos += ulong(work->i_row) * (kRopeDim / 2);
  sin += ulong(work->i_row) * (kRopeDim / 2);
  // This SIMD-group's channels, in blocks of 8.
  const uint first = sg * 64;
  const uint n_blocks = kHeadDim % 64 == 0 ? 8 : min((kHeadDim - first) / 8, 8u);

  simdgroup_matrix<T, 8, 8> query[MB][8];
#pragma unroll
  for (uint mb = 0; mb < MB; mb++) {
    for (uint h = sg; h < 8; h += n_groups) {
      constexpr uint NC = kMaxHeadDim / 256;
      float4 x[2 * NC];
#pragma unroll
      for (uint j = 0; j < 2 * NC; j++) x[j] = 0.f;
      if (8 * mb + h < n_heads) {
        load_query<NC>(q + ulong(8 * mb + h) * kHeadDim, cos, sin, args.eps, args.scale, lane, x);
      }
#pragma unroll
      for (uint j = 0; j < NC; j++) {
        const uint channel = (32 * j + lane) * 8;
        if (channel >= kHeadDim) break;
        threadgroup T* to = tile + h * stride + channel;
        store4(to, x[2 * j]);
        store4(to + 4, x[2 * j + 1]);
      }
    }
    // The device flag: q is read here and written at the end.
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
#pragma unroll
    for (uint b = 0; b < 8; b++) {
      if (b < n_blocks) simdgroup_load(query[mb][b], tile + first + 8 * b, stride);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Which row of a matrix the two elements that a lane holds belong to: asked of the hardware,
  // since the layout is not specified.
  if (tid < 32) {
    part[tid] = float(tid / 8);
    part[tid + 32] = float(tid / 8 + 4);
  }
  // The sink is a logit without a value [V4 4.6.5].
  if (tid < kHeads) {
    const float sink = sinks[head + min(tid, n_heads - 1)] * kLog2E;
    top[tid] = fmax(sink, -FLT_MAX);
    sum[tid] = exp2(sink - top[tid]);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_matrix<float, 8, 8> ids;
  simdgroup_load(ids, part, 8);
  const uint row0 = uint(ids.thread_elements()[0]), row1 = uint(ids.thread_elements()[1]);

  simdgroup_matrix<float, 8, 8> o[MB][8];
#pragma unroll
  for (uint mb = 0; mb < MB; mb++) {
#pragma unroll
    for (uint b = 0; b < 8; b++) o[mb][b] = make_filled_simdgroup_matrix<float, 8, 8>(0.f);
  }

  for (uint begin = 0; begin < n_rows; begin += kRows) {
    for (uint r = sg; r < kRows; r += n_groups) {
      ulong at = 0;
      if (begin + r < n_rows) {
        at = row_address(args, source, i_query, n_visible, begin + r);
      }
#pragma unroll
      for (uint j = 0; j < kMaxHeadDim / 256; j++) {
        const uint channel = (32 * j + lane) * 8;
        if (channel >= kHeadDim) break;
        KvChunk kv;
        kv.lo = 0.f;
        kv.hi = 0.f;
        kv.scale = 0.f;
        if (at != 0) {
          kv = kv_chunk((device const uchar*)(at), channel, kKvKind, kHeadDim, kRopeDim);
        }
        threadgroup T* to = tile + r * stride + channel;
        store4(to, kv.lo * kv.scale);
        store4(to + 4, kv.hi * kv.scale);
      }
      if (lane == 0) used[r] = at != 0 ? 1.f : 0.f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // This SIMD-group's channels of the scores.
    simdgroup_matrix<float, 8, 8> s[MB][RB];
#pragma unroll
    for (uint mb = 0; mb < MB; mb++) {
#pragma unroll
      for (uint rb = 0; rb < RB; rb++) s[mb][rb] = make_filled_simdgroup_matrix<float, 8, 8>(0.f);
    }
#pragma unroll
    for (uint b = 0; b < 8; b++) {
      if (b < n_blocks) {
#pragma unroll
        for (uint rb = 0; rb < RB; rb++) {
          simdgroup_matrix<T, 8, 8> k;
          simdgroup_load(k, tile + 8 * rb * stride + first + 8 * b, stride, ulong2(0), true);
#pragma unroll
          for (uint mb = 0; mb < MB; mb++) {
            simdgroup_multiply_accumulate(s[mb][rb], query[mb][b], k, s[mb][rb]);
          }
        }
      }
    }
#pragma unroll
    for (uint mb = 0; mb < MB; mb++) {
#pragma unroll
      for (uint rb = 0; rb < RB; rb++) {
        simdgroup_store(s[mb][rb], part + (sg * kHeads + 8 * mb) * kPart + 8 * rb, kPart);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    // Online softmax, eight lanes a head.
    for (uint g = sg; g < kHeads / 4; g += n_groups) {
      const uint h = 4 * g + lane / 8, r = lane % 8 * RB;
      float score[RB];
      const float old = top[h];
      float high = old;
#pragma unroll
      for (uint i = 0; i < RB; i++) {
        score[i] = 0.f;
        for (uint k = 0; k < n_groups; k++) score[i] += part[(k * kHeads + h) * kPart + r + i];
        if (used[r + i] != 0.f) high = fmax(high, score[i]);
      }
#pragma unroll
      for (ushort x = 1; x < 8; x *= 2) high = fmax(high, simd_shuffle_xor(high, x));
      float total = 0.f;
#pragma unroll
      for (uint i = 0; i < RB; i++) {
        const float w = used[r + i] != 0.f ? exp2(score[i] - high) : 0.f;
        total += w;
        p[h * kP + r + i] = T(w);
      }
#pragma unroll
      for (ushort x = 1; x < 8; x *= 2) total += simd_shuffle_xor(total, x);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      if (lane % 8 == 0) {
        const float k = exp2(old - high);
        top[h] = high;
        keep[h] = k;
        sum[h] = sum[h] * k + total;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    simdgroup_matrix<T, 8, 8> weights[MB][RB];
#pragma unroll
    for (uint mb = 0; mb < MB; mb++) {
      const float k0 = keep[8 * mb + row0], k1 = keep[8 * mb + row1];
#pragma unroll
      for (uint b = 0; b < 8; b++) {
        o[mb][b].thread_elements()[0] *= k0;
        o[mb][b].thread_elements()[1] *= k1;
      }
#pragma unroll
      for (uint rb = 0; rb < RB; rb++) {
        simdgroup_load(weights[mb][rb], p + 8 * mb * kP + 8 * rb, kP);
      }
    }
#pragma unroll
    for (uint b = 0; b < 8; b++) {
      if (b < n_blocks) {
#pragma unroll
        for (uint rb = 0; rb < RB; rb++) {
          simdgroup_matrix<T, 8, 8> v;
          simdgroup_load(v, tile + 8 * rb * stride + first + 8 * b, stride);
#pragma unroll
          for (uint mb = 0; mb < MB; mb++) {
            simdgroup_multiply_accumulate(o[mb][b], weights[mb][rb], v, o[mb][b]);
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  threadgroup float* result = (threadgroup float*)(storage);
#pragma unroll
  for (uint mb = 0; mb < MB; mb++) {
#pragma unroll
    for (uint b = 0; b < 8; b++) {
      if (b < n_blocks) simdgroup_store(o[mb][b], result + first + 8 * b, kHeadDim);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < 4 * kHeadDim; i += 32 * n_groups) {
      const uint h = i / (kHeadDim / 2), channel = i % (kHeadDim / 2) * 2;
      if (8 * mb + h >= n_heads) break;
      const float2 x = float2(result[h * kHeadDim + channel], result[h * kHeadDim + channel + 1]);
      *(device float2*)(q + ulong(8 * mb + h) * kHeadDim + channel) =
          unrotate(x / sum[8 * mb + h], channel, cos, sin);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

#define INSTANCE(T, MB, RB, HEADS)                           \
  template [[host_name("attention_prefill_" #T "_" #HEADS)]] \
  [[kernel]] decltype(attention_prefill<T, MB, RB>) attention_prefill<T, MB, RB>;
INSTANCE(half, 1, 2, 8)
INSTANCE(half, 2, 2, 16)
INSTANCE(float, 1, 1, 8)
INSTANCE(float, 2, 1, 16)
