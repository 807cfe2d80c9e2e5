// The lightning indexer: scores index rows against queries, and picks the best [V4 4.9].
//
//   index_queries   rotates, transforms and rounds the heads of each query
//   index_score_*   score[s] = sum_h w_h relu(q_h . R_s) for the visible rows of each query
//   index_top       the rows with the largest scores, in ascending order
#include <metal_stdlib>

#include "args/indexer_args.h"
#include "inline.h"
#include "kv_pack.h"

using namespace metal;
using namespace grebe;

// Index rows are FP4, else f32.
constant uint kPacked [[function_constant(0)]];
// Packed rows begin at multiples of 4 bytes (dim = 128: 68 bytes).
constant uint kAligned [[function_constant(1)]];
// index_top reads its scores again for each step of its search: top_k is too large for slices.
constant uint kWide [[function_constant(2)]];

// ---- queries

// One SIMD-group a head. FP4 numbers and their power-of-two scales are exact in bfloat, which has
// the exponents of a float, so the products below are those of the CPU's integers.
//   q        f32[n, n_heads, dim]
//   rows     i32[n_prepared], rows of q
//   out      bfloat or float [n_prepared, heads / 8, channels / 8, 8, 8]: tiles of 8 heads x 8
//            channels, so that a tile is one run of memory; padding is zero
//   scaled   f32[n_prepared, heads]
// Threadgroup memory: f32[SIMD-groups, channels]. Grid: [heads / SIMD-groups, n_prepared].
[[kernel, max_total_threads_per_threadgroup(128)]] void index_queries(
    constant IndexQueriesArgs& a [[buffer(0)]],
    device const float* q [[buffer(1)]],
    device const float* weights [[buffer(2)]],
    device const float* cos [[buffer(3)]],
    device const float* sin [[buffer(4)]],
    device const int* rows [[buffer(5)]],
    device uchar* out [[buffer(6)]],
    device float* scaled [[buffer(7)]],
    threadgroup float* memory [[threadgroup(0)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint n_simds [[simdgroups_per_threadgroup]]) {
  const uint head = group.x * n_simds + simd, channels = uint(a.channels), dim = uint(a.dim);
  if (head >= uint(a.heads)) return;
  const bool real = head < uint(a.n_heads);
  const long row = rows[group.y];
  threadgroup float* x = memory + simd * channels;
  device const float* from = q + (row * a.n_heads + head) * dim;
  for (uint c = lane; c < channels; c += 32) x[c] = real && c < dim ? from[c] : 0.f;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (real) {
    const long angles = row * a.pairs;
    rotate_pairs(x + dim - 2 * uint(a.pairs), cos + angles, sin + angles, uint(a.pairs), lane, 32);
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (lane == 0) {
    scaled[long(group.y) * a.heads + head] =
        real ? weights[row * a.n_heads + head] * a.weight_scale : 0.f;
  }
  const long tiles = (long(group.y) * (a.heads / 8) + head / 8) * (channels / 8);
  if (kPacked != 0) simd_hadamard(x, dim, a.hadamard_scale, lane);
  for (uint b = 0; b < channels / 32; b++) {
    const uint c = 32 * b + lane;
    const long at = (tiles + c / 8) * 64 + head % 8 * 8 + c % 8;
    float v = x[c];
    if (kPacked == 0) {
      ((device float*)out)[at] = v;
    } else {
      const int e = fp4_block_exponent(simd_max_abs_bits(v));
      v = e2m1_to_float(float_to_e2m1(scale_down(v, e))) * e8m0_to_float(uchar(e + 127));
      ((device ushort*)out)[at] = ushort(as_type<uint>(v) >> 16);
    }
  }
}

// ---- scores

// 8 channels of a packed row from channel k up, as pairs of bfloats.
GREBE_INLINE uint4 unpack_fp4(device const uchar* row, uint k, uint dim) {
  device const uchar* p = row + k / 2;
  const uint codes = kAligned != 0
                         ? *(device const uint*)p
                         : uint(p[0]) | uint(p[1]) << 8 | uint(p[2]) << 16 | uint(p[3]) << 24;
  const float scale = e8m0_to_float(row[dim / 2 + k / 32]);
  uint4 pairs;
#pragma unroll
  for (uint i = 0; i < 4; i++) {
    const float even = e2m1_to_float(uchar(codes >> 8 * i & 15u)) * scale;
    const float odd = e2m1_to_float(uchar(codes >> (8 * i + 4) & 15u)) * scale;
    pairs[i] = as_type<uint>(even) >> 16 | (as_type<uint>(odd) & 0xffff0000u);
  }
  return pairs;
}

GREBE_INLINE void store_tile_row(
    threadgroup bfloat* to, device const uchar* row, uint k, uint dim) {
  *(threadgroup uint4*)to = row ? unpack_fp4(row, k, dim) : uint4(0);
}

GREBE_INLINE void store_tile_row(threadgroup float* to, device const uchar* row, uint k, uint dim) {
  device const float* from = (device const float*)row;
  for (uint i = 0; i < 8; i++) to[i] = row && k + i < dim ? from[k + i] : 0.f;
}

// Channels of a tile: all of an index row of Flash.
constant constexpr uint kTileChannels = 128;
constant constexpr uint kSimds = 4;

// A tile of 2 * 8 * kCols rows is unpacked into threadgroup memory once (16 KiB, so that a core
// holds several threadgroups) and meets every query of a group. SIMD-group (half, side): the heads
// of slabs side, side + 2, ... and the rows of one half; a slab is 4 x kCols accumulators, 8 loads
// of tiles for 16 products when packed. The queries come straight from memory, tile by tile, and
// are shared by all threadgroups through the cache. Products of tiles are exact; their sums depend
// on nothing but the row, so rows that are alike score alike.
//   tile     [2 kCols, channels / 8, 8 rows, 8 channels]
//   dots     f32[SIMD-groups, 8 heads, 8 kCols rows]
//   sums     f32[2, 16 kCols]
template <typename T, uint kCols>
GREBE_INLINE void score_tile(
    constant IndexScoreArgs& a,
    device const IndexGroup& group,
    uint i_tile,
    device const IndexQuery* queries,
    device const T* prepared,
    device const float* weights,
    device float* scores,
    threadgroup T* tile,
    threadgroup float* all_dots,
    threadgroup float* sums,
    uint lane,
    uint simd) {
  constexpr uint kSimdRows = 8 * kCols, kRows = 2 * kSimdRows;
  const uint row0 = i_tile * kRows, dim = uint(a.dim);
  const uint row_half = simd % 2, side = simd / 2;
  const uint all_k = uint(a.channels) / 8, n_slabs = uint(a.heads / kIndexHeads);
  const uint n_chunks = (uint(a.channels) + kTileChannels - 1) / kTileChannels;
  threadgroup float* dots = all_dots + simd * 8 * kSimdRows;
  bool is_loaded = false;
  for (int i = 0; i < group.n_queries; i++) {
    device const IndexQuery& query = queries[group.first_query + i];
    float total = 0.f;
    for (uint round = 0; round < (n_slabs + 1) / 2; round++) {
      const uint slab = 2 * round + side;
      simdgroup_float8x8 acc[4][kCols];
#pragma unroll
      for (uint h = 0; h < 4; h++) {
#pragma unroll
        for (uint t = 0; t < kCols; t++) acc[h][t] = make_filled_simdgroup_matrix<float, 8, 8>(0.f);
      }
      for (uint chunk = 0; chunk < n_chunks; chunk++) {
        const uint n_k = min(uint(a.channels) - chunk * kTileChannels, kTileChannels) / 8;
        if (n_chunks > 1 || !is_loaded) {
          if (is_loaded) threadgroup_barrier(mem_flags::mem_threadgroup);
          // 8 rows x 4 runs of 8 channels at a time: a SIMD-group writes whole tiles of 8 x 8.
          for (uint t = simd; t < kRows / 8; t += kSimds) {
            const uint r = row0 + 8 * t + lane % 8;
            device const uchar* row = nullptr;
            if (r < uint(group.n_rows)) {
              const uint block = r / uint(group.rows_per_block);
              row = group.blocks[block].data + group.offset +
                    ulong(r - block * uint(group.rows_per_block)) * uint(group.row_bytes);
            }
            for (uint k = lane / 8; k < n_k; k += 4) {
              store_tile_row(
                  tile + ((t * n_k + k) * 8 + lane % 8) * 8,
                  row,
                  chunk * kTileChannels + 8 * k,
                  dim);
            }
          }
          threadgroup_barrier(mem_flags::mem_threadgroup);
          is_loaded = true;
        }
        if (slab >= n_slabs) continue;
        device const T* heads =
            prepared + (long(query.prepared) * (a.heads / 8) + 4 * slab) * long(64 * all_k) +
            64 * chunk * (kTileChannels / 8);
        threadgroup const T* cols = tile + row_half * kCols * n_k * 64;
        for (uint k = 0; k < n_k; k++) {
          simdgroup_matrix<T, 8, 8> q[4], r[kCols];
#pragma unroll
          for (uint h = 0; h < 4; h++) simdgroup_load(q[h], heads + (h * all_k + k) * 64, 8);
#pragma unroll
          for (uint t = 0; t < kCols; t++) {
            simdgroup_load(r[t], cols + (t * n_k + k) * 64, 8, ulong2(0), true);
          }
#pragma unroll
          for (uint h = 0; h < 4; h++) {
#pragma unroll
            for (uint t = 0; t < kCols; t++) {
              simdgroup_multiply_accumulate(acc[h][t], q[h], r[t], acc[h][t]);
            }
          }
        }
      }
      if (slab >= n_slabs) continue;
      // A lane takes a row through the heads, 8 at a time.
      device const float* w = weights + long(query.prepared) * a.heads + kIndexHeads * slab;
#pragma unroll
      for (uint h = 0; h < 4; h++) {
#pragma unroll
        for (uint t = 0; t < kCols; t++) simdgroup_store(acc[h][t], dots + 8 * t, kSimdRows);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        if (lane < kSimdRows) {
#pragma unroll
          for (uint j = 0; j < 8; j++) {
            const float dot = dots[j * kSimdRows + lane];
            total = fma(dot <= 0.f ? 0.f : dot, w[8 * h + j], total);  // NaN stays
          }
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
    }
    // The two sides add up. The buffers alternate, so one barrier a query is enough.
    const uint mine = row_half * kSimdRows + lane, r = row0 + mine;
    threadgroup float* sum = sums + uint(i % 2) * kRows;
    if (side == 1 && lane < kSimdRows) sum[mine] = total;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (side == 0 && lane < kSimdRows && r < uint(query.visible)) {
      scores[query.scores + r] = total + sum[mine];
    }
  }
}

// The group of a tile: the last that begins at or before it.
static uint group_of(device const IndexGroup* groups, uint n, uint tile) {
  uint low = 0, high = n;
  while (high - low > 1) {
    const uint middle = (low + high) / 2;
    if (groups[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

//   groups    in ascending order of first_tile
//   queries   those of the pass
//   prepared  and weights: from index_queries
//   scores    f32, as the queries say
// Grid: [tiles of all groups], 128 threads.
[[kernel, max_total_threads_per_threadgroup(128)]] void index_score_packed(
    constant IndexScoreArgs& a [[buffer(0)]],
    device const IndexGroup* groups [[buffer(1)]],
    device const IndexQuery* queries [[buffer(2)]],
    device const bfloat* prepared [[buffer(3)]],
    device const float* weights [[buffer(4)]],
    device float* scores [[buffer(5)]],
    uint tile_index [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint4 storage[kIndexRowsPacked * kTileChannels * sizeof(bfloat) / sizeof(uint4)];
  threadgroup float dots[kSimds * 8 * kIndexRowsPacked / 2];
  threadgroup float sums[2 * kIndexRowsPacked];
  device const IndexGroup& group = groups[group_of(groups, uint(a.n_groups), tile_index)];
  score_tile<bfloat, kIndexRowsPacked / 16>(
      a,
      group,
      tile_index - group.first_tile,
      queries,
      prepared,
      weights,
      scores,
      (threadgroup bfloat*)storage,
      dots,
      sums,
      lane,
      simd);
}

// The same for plain f32 rows: half as many rows, as they take twice the memory.
[[kernel, max_total_threads_per_threadgroup(128)]] void index_score_f32(
    constant IndexScoreArgs& a [[buffer(0)]],
    device const IndexGroup* groups [[buffer(1)]],
    device const IndexQuery* queries [[buffer(2)]],
    device const float* prepared [[buffer(3)]],
    device const float* weights [[buffer(4)]],
    device float* scores [[buffer(5)]],
    uint tile_index [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[kIndexRowsF32 * kTileChannels];
  threadgroup float dots[kSimds * 8 * kIndexRowsF32 / 2];
  threadgroup float sums[2 * kIndexRowsF32];
  device const IndexGroup& group = groups[group_of(groups, uint(a.n_groups), tile_index)];
  score_tile<float, kIndexRowsF32 / 16>(
      a,
      group,
      tile_index - group.first_tile,
      queries,
      prepared,
      weights,
      scores,
      tile,
      dots,
      sums,
      lane,
      simd);
}

// ---- selection

// Unsigned integers in the order of the floats, 0 left free; -0 and 0 are equal. NaN is beyond
// infinity on the side of its sign, as on the CPU.
static uint order_key(float x) {
  const uint u = as_type<uint>(x);
  if (u == 0x80000000u) return 0x80000000u;
  return max(u ^ (u >> 31 ? 0xffffffffu : 0x80000000u), 1u);
}

// What index_top reads: scores, or the candidates of the level below.
struct TopInput {
  device const float* scores;
  device const uint* keys;
};

// Keys [begin, begin + kTopKeys) of n; 0 past the end.
GREBE_INLINE void load_keys(thread uint* keys, TopInput in, uint begin, uint n) {
  if (in.scores && begin + kTopKeys <= n) {
#pragma unroll
    for (uint i = 0; i < kTopKeys / 4; i++) {
      const float4 v = ((device const float4*)(in.scores + begin))[i];
#pragma unroll
      for (uint j = 0; j < 4; j++) keys[4 * i + j] = order_key(v[j]);
    }
    return;
  }
#pragma unroll
  for (uint i = 0; i < kTopKeys; i++) {
    keys[i] = 0;
    if (begin + i < n) keys[i] = in.scores ? order_key(in.scores[begin + i]) : in.keys[begin + i];
  }
}

// Candidates of a query at a level: every full slice of the level below leaves top_k.
static uint n_candidates(uint n, uint level, uint slice, uint top_k) {
  for (uint i = 0; i < level; i++) {
    const uint full = (n - 1) / slice;
    n = full * top_k + min(n - full * slice, top_k);
  }
  return n;
}

// Chooses the top_k largest of a slice; the lowest row wins a tie. A thread owns consecutive
// scores and keeps them in registers. The score of the last row taken is found two bits at a time
// by counting what is not below three bounds: nothing is moved, and as soon as a bound has exactly
// top_k above it, it will do. Prefix sums then give each row its place in ascending order.
//
// A query with more rows than a slice (16 K) is cut: each slice leaves top_k candidates in
// ascending order, and the next level chooses among those. Ties stay right: a slice drops a tie
// only for lower rows.
//   queries   those of the pass
//   keys_in, rows_in    u32, i32[queries, stride], levels above 0
//   keys_out, rows_out  u32, i32[queries, next_stride], where another level follows
// Grid: [slices, queries], as many threads as a slice needs.
[[kernel, max_total_threads_per_threadgroup(1024)]] void index_top(
    constant IndexTopArgs& a [[buffer(0)]],
    device const IndexQuery* queries [[buffer(1)]],
    device const float* scores [[buffer(2)]],
    device const uint* keys_in [[buffer(3)]],
    device const int* rows_in [[buffer(4)]],
    device uint* keys_out [[buffer(5)]],
    device int* rows_out [[buffer(6)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint2 threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint n_simds [[simdgroups_per_threadgroup]]) {
  threadgroup uint range[2 * 32];
  threadgroup uint counts[2 * 3 * 32];
  threadgroup uint places[2 * 32];
  const uint n_threads = threads.x, top_k = uint(a.top_k), slice = uint(a.slice);
  device const IndexQuery& query = queries[group.y];
  device int* out = query.out;
  const uint level = uint(a.level), visible = uint(query.visible);
  if (visible <= top_k) {
    if (group.x != 0 || level != 0) return;
    for (uint i = thread_index; i < top_k; i += n_threads) out[i] = i < visible ? int(i) : -1;
    return;
  }
  // Done at an earlier level, or a slice past the end.
  if (level > 0 && n_candidates(visible, level - 1, slice, top_k) <= slice) return;
  const uint n_all = n_candidates(visible, level, slice, top_k), first = group.x * slice;
  if (first >= n_all) return;
  const uint n = min(n_all - first, slice);
  const bool is_last_level = n_all <= slice;

  TopInput in = {nullptr, nullptr};
  const long candidates = long(group.y) * a.stride + first;
  if (level == 0) {
    in.scores = scores + query.scores + first;
  } else {
    in.keys = keys_in + candidates;
  }
  const uint n_chunks = kWide != 0 ? (n + kTopKeys * n_threads - 1) / (kTopKeys * n_threads) : 1;
  const uint begin = thread_index * n_chunks * kTopKeys;
  uint keys[kTopKeys];
  if (kWide == 0) load_keys(keys, in, begin, n);

  uint bound = 0;  // every row above it is taken, those at it as far as there is room
  if (n > top_k) {
    // Leading bits that all keys share need no search.
    uint low = 0xffffffffu, high = 0;
    for (uint c = 0; c < n_chunks; c++) {
      if (kWide != 0) load_keys(keys, in, begin + c * kTopKeys, n);
#pragma unroll
      for (uint i = 0; i < kTopKeys; i++) {
        high = max(high, keys[i]);
        low = min(low, keys[i] == 0 ? low : keys[i]);
      }
    }
    low = simd_min(low);
    high = simd_max(high);
    if (lane == 0) {
      range[simd] = low;
      range[32 + simd] = high;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    low = simd_min(lane < n_simds ? range[lane] : 0xffffffffu);
    high = simd_max(lane < n_simds ? range[32 + lane] : 0u);
    uint shift = (33 - clz(low ^ high)) / 2 * 2;
    bound = shift == 32 ? 0 : high >> shift << shift;

    for (uint step = 0; shift > 0; step++) {
      shift -= 2;
      const uint b1 = bound + (1u << shift), b2 = bound + (2u << shift), b3 = bound + (3u << shift);
      uint c1 = 0, c2 = 0, c3 = 0;
      for (uint c = 0; c < n_chunks; c++) {
        if (kWide != 0) load_keys(keys, in, begin + c * kTopKeys, n);
#pragma unroll
        for (uint i = 0; i < kTopKeys; i++) {
          c1 += keys[i] >= b1 ? 1 : 0;
          c2 += keys[i] >= b2 ? 1 : 0;
          c3 += keys[i] >= b3 ? 1 : 0;
        }
      }
      if (kWide == 0) {  // at most 512 of a SIMD-group: three sums in one
        const uint packed = simd_sum(c1 | c2 << 10 | c3 << 20);
        c1 = packed & 1023u;
        c2 = packed >> 10 & 1023u;
        c3 = packed >> 20;
      } else {
        c1 = simd_sum(c1);
        c2 = simd_sum(c2);
        c3 = simd_sum(c3);
      }
      threadgroup uint* count = counts + step % 2 * 96;  // two in turn: one barrier a step
      if (lane == 0) {
        count[simd] = c1;
        count[32 + simd] = c2;
        count[64 + simd] = c3;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      c1 = simd_sum(lane < n_simds ? count[lane] : 0u);
      c2 = simd_sum(lane < n_simds ? count[32 + lane] : 0u);
      c3 = simd_sum(lane < n_simds ? count[64 + lane] : 0u);
      bound = c3 >= top_k ? b3 : c2 >= top_k ? b2 : c1 >= top_k ? b1 : bound;
      if (c1 == top_k || c2 == top_k || c3 == top_k) break;  // the same in every thread
    }
  }

  uint above = 0, equal = 0;
  for (uint c = 0; c < n_chunks; c++) {
    if (kWide != 0) load_keys(keys, in, begin + c * kTopKeys, n);
#pragma unroll
    for (uint i = 0; i < kTopKeys; i++) {
      above += keys[i] > bound ? 1 : 0;
      equal += keys[i] == bound ? 1 : 0;
    }
  }
  uint above_before = simd_prefix_exclusive_sum(above);
  uint equal_before = simd_prefix_exclusive_sum(equal);
  if (lane == 31) {
    places[simd] = above_before + above;
    places[32 + simd] = equal_before + equal;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint above_here = lane < n_simds ? places[lane] : 0u;
  const uint equal_here = lane < n_simds ? places[32 + lane] : 0u;
  const uint n_above = simd_sum(above_here);
  above_before += simd_sum(lane < simd ? above_here : 0u);
  equal_before += simd_sum(lane < simd ? equal_here : 0u);
  const uint room = n > top_k ? top_k - n_above : 0u;  // for rows at the bound

  uint place = above_before + min(equal_before, room);
  const long to = long(group.y) * a.next_stride + long(group.x) * top_k;
  for (uint c = 0; c < n_chunks; c++) {
    if (kWide != 0) load_keys(keys, in, begin + c * kTopKeys, n);
#pragma unroll
    for (uint i = 0; i < kTopKeys; i++) {
      bool is_taken = keys[i] > bound;
      if (keys[i] == bound) is_taken = equal_before++ < room;
      if (!is_taken) continue;
      const uint at = begin + c * kTopKeys + i;
      const int row = level == 0 ? int(first + at) : rows_in[candidates + at];
      if (is_last_level) {
        out[place] = row;
      } else {
        keys_out[to + place] = keys[i];
        rows_out[to + place] = row;
      }
      place++;
    }
  }
}
