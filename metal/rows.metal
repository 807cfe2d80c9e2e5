// The rows that a step adds to the cache, and the pooling states after it [V4 4.6.3, 4.7, 5].
//
// One threadgroup a job: a row is normalised over all its channels, so it cannot be cut; the jobs
// of a step are many in prefill and small in decode. A thread owns channels i, i + threads, ...:
// the tokens of a window are read row by row, coalesced, and pooled in their order, one after
// another. So a window gives the same bits however a prompt is cut into steps.
#include <metal_stdlib>

#include "args/rows_args.h"
#include "inline.h"
#include "kv_pack.h"

using namespace metal;
using namespace grebe;

// Values of KvRowFormat::Kind, and whether index rows are FP4.
constant uint kKvKind [[function_constant(0)]];
constant uint kIndexPacked [[function_constant(1)]];
constant constexpr uint kKindF32 = 0, kKindPackedBf16 = 1;

// Softmax over the tokens so far of one channel: largest logit, sum of e^(z - top), and the same
// sum weighted with the values.
struct Pooled {
  float top, sum, weighted;
};

GREBE_INLINE void add(thread Pooled& p, float value, float z) {
  const float top = p.top > z ? p.top : z;  // NaN stays
  const float keep = exp(p.top - top), e = exp(z - top);
  p.top = top;
  p.sum = fma(p.sum, keep, e);
  p.weighted = fma(p.weighted, keep, e * value);
}

// Adds tokens [begin, end) of the segment at `column` of their rows.
GREBE_INLINE void pool_tokens(
    thread Pooled& p, device const RowsSource& s, int begin, int end, uint column) {
  int slot = (s.slot + begin) % s.ratio;
  for (int t = begin; t < end; t++) {
    const long at = long(t) * s.stride + column;
    add(p, s.kv[at], s.gate[at] + s.ape[long(slot) * s.width + column]);
    slot = slot + 1 == s.ratio ? 0 : slot + 1;
  }
}

GREBE_INLINE Pooled pool_channel(device const RowsSource& s, device const RowsJob& job, uint c) {
  Pooled p = {-INFINITY, 0.f, 0.f};
  if (job.start >= 0) {
    device const float* state = s.state_in + long(job.start) * 3 * s.dim;
    p.top = state[c];
    p.sum = state[s.dim + c];
    p.weighted = state[2 * s.dim + c];
  }
  pool_tokens(p, s, job.a_begin, job.a_end, c);
  pool_tokens(p, s, job.b_begin, job.b_end, uint(s.width - s.dim) + c);
  return p;
}

// Threadgroup memory: f32[dim] of the longest row, then f32[32].
// Grid: [jobs], whole SIMD-groups; 512 threads for heads of 512 channels.
[[kernel, max_total_threads_per_threadgroup(512)]] void rows(
    constant RowsArgs& a [[buffer(0)]],
    device const RowsSource* sources [[buffer(1)]],
    device const RowsJob* jobs [[buffer(2)]],
    threadgroup float* row [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint n_threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint n_simds [[simdgroups_per_threadgroup]]) {
  device const RowsJob& job = jobs[group];
  device const RowsSource& s = sources[job.source];
  const uint dim = uint(s.dim);
  device float* floats = (device float*)job.out;

  if (job.kind == kRowsState) {
    for (uint c = thread_index; c < dim; c += n_threads) {
      const Pooled p = pool_channel(s, job, c);
      floats[c] = p.top;
      floats[dim + c] = p.sum;
      floats[2 * dim + c] = p.weighted;
    }
    return;
  }
  if (job.kind == kRowsPlain) {
    for (uint c = thread_index; c < dim; c += n_threads) {
      const Pooled p = pool_channel(s, job, c);
      floats[c] = p.weighted / p.sum;
    }
    return;
  }

  threadgroup float* partial = row + dim;
  float squares = 0.f;
  for (uint c = thread_index; c < dim; c += n_threads) {
    float x;
    if (job.in) {
      x = job.in[c];
    } else {
      const Pooled p = pool_channel(s, job, c);
      x = p.weighted / p.sum;
    }
    row[c] = x;
    squares = fma(x, x, squares);
  }
  squares = simd_sum(squares);
  if (lane == 0) partial[simd] = squares;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  squares = simd_sum(lane < n_simds ? partial[lane] : 0.f);
  const float r = 1.f / sqrt(squares / float(dim) + a.eps);
  for (uint c = thread_index; c < dim; c += n_threads) row[c] = row[c] * r * s.norm[c];
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const uint pairs = uint(s.pairs), nope = dim - 2 * pairs;
  const long entry = long(job.entry) * s.pairs;
  rotate_pairs(row + nope, s.cos + entry, s.sin + entry, pairs, thread_index, n_threads);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (job.kind == kRowsIndex ? kIndexPacked == 0 : kKvKind == kKindF32) {
    for (uint c = thread_index; c < dim; c += n_threads) floats[c] = row[c];
  } else if (job.kind == kRowsIndex) {
    if (simd != 0) return;
    simd_hadamard(row, dim, a.hadamard_scale, lane);
    simd_pack_fp4(row, dim, job.out, lane);
  } else {
    const uint scales = nope + uint(a.rope_bytes), end = scales + nope / 64;
    pack_e4m3_blocks(row, nope, job.out, job.out + scales, simd, n_simds, lane);
    for (uint i = thread_index; i < 2 * pairs; i += n_threads) {
      if (kKvKind == kKindPackedBf16) {
        ((device ushort*)(job.out + nope))[i] = float_to_bf16(row[nope + i]);
      } else {
        ((device float*)(job.out + nope))[i] = row[nope + i];
      }
    }
    for (uint i = end + thread_index; i < uint(a.kv_row_bytes); i += n_threads) job.out[i] = 0;
  }
}
