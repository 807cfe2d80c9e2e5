// Hyper-connections [V4 4.2, 4.3, 4.11]: s residual streams, mixed before and after each sublayer.
//
// hc_mix multiplies all streams of a token by fn, and while it has them in hand first adds what the
// sublayer before left (hc_post), so the streams pass memory once. It is cut into chunks of
// channels, whose partial products hc_finish adds in a fixed order before it mixes.
#include <metal_stdlib>

#include "args/hyper_args.h"
#include "common.h"
#include "dequant.h"
#include "inline.h"

using namespace metal;

constant uint kType [[function_constant(0)]];      // of fn
constant uint kTokens [[function_constant(1)]];    // a threadgroup of hc_mix takes, 1 to 8
constant uint kSegments [[function_constant(2)]];  // n_streams, or 1
constant uint kChunk [[function_constant(3)]];     // channels of each segment, a multiple of 16
constant uint kUpdate [[function_constant(4)]];    // 1: X changes first; kSegments = n_streams
constant uint kGather [[function_constant(5)]];    // 1: token t is row rows[t] of X
constant uint kStreams [[function_constant(6)]];

// Rows of fn that a SIMD-group multiplies at a time: 8 SIMD-groups do the 24 rows of 4 streams at
// once, and each value of x that leaves threadgroup memory serves three products.
constant constexpr uint kRows = 3;
constant constexpr uint kMixGroups = 8;

// Loops over arrays go to the fixed maximum, so that they can be unrolled where a function constant
// is not yet known; the comparisons with it vanish.
constant constexpr uint kMaxTokens = 8;
constant constexpr uint kMaxStreams = 8;

// Weights [k, k + 4) of a row of floats; zeros at n_valid and after. Rows are aligned to one
// number.
GREBE_INLINE float4 load4_weights(device const uchar* row, uint k, uint n_valid) {
  float4 w = 0;
  if (kType == kWeightF32) {
    device const float* p = (device const float*)row + k;
    if (n_valid >= 4) return float4(*(device const packed_float4*)p);
    for (uint i = 0; i < n_valid; i++) w[i] = p[i];
  } else if (kType == kWeightF16) {
    device const half* p = (device const half*)row + k;
    if (n_valid >= 4) return float4(half4(*(device const packed_half4*)p));
    for (uint i = 0; i < n_valid; i++) w[i] = float(p[i]);
  } else {
    device const ushort* p = (device const ushort*)row + k;
    for (uint i = 0; i < min(n_valid, 4u); i++) w[i] = bf16_to_float(p[i]);
  }
  return w;
}

// Products of one chunk of the streams with all rows of fn, and their squares.
//   X         f32[n, n_streams, hidden], or rows of it
//   y         f32[n, hidden], post f32[n, s], comb f32[n, s, s]: of the sublayer before (kUpdate)
//   partials  f32[n, n_mixes + 1, n_chunks] out, the last of n_mixes + 1 the sum of squares
// Grid: [n_chunks, n / kTokens], 256 threads.
[[kernel, max_total_threads_per_threadgroup(256)]] void hc_mix(
    constant HyperArgs& a [[buffer(0)]],
    device const uchar* fn [[buffer(1)]],
    device const uchar* fn_scales [[buffer(2)]],
    device float* X [[buffer(3)]],
    device const int* rows [[buffer(4)]],
    device const float* y [[buffer(5)]],
    device const float* post [[buffer(6)]],
    device const float* comb [[buffer(7)]],
    device float* partials [[buffer(8)]],
    threadgroup float* x [[threadgroup(0)]],  // [kTokens, kSegments, kChunk]
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint first = group.x * kChunk, token0 = group.y * kTokens;
  const uint n_tokens = min(kTokens, a.n - token0);
  const uint width = kSegments * a.segment;

  if (kUpdate != 0) {
    // A thread has one channel of all streams, so none reads what another has written.
    for (uint i = thread_index; i < kTokens * kChunk; i += 32 * kMixGroups) {
      const uint t = i / kChunk, c = i % kChunk, channel = first + c;
      threadgroup float* out = x + t * kSegments * kChunk + c;
      if (t >= n_tokens || channel >= a.segment) {
        for (uint k = 0; k < kSegments; k++) out[k * kChunk] = 0;
        continue;
      }
      const uint token = token0 + t;
      device float* streams = X + ulong(token) * width + channel;
      device const float* p = post + token * kSegments;
      device const float* m = comb + token * kSegments * kSegments;
      const float added = y[ulong(token) * a.hidden + channel];
      float before[kMaxStreams];
#pragma unroll
      for (uint j = 0; j < kMaxStreams; j++) {
        if (j < kSegments) before[j] = streams[j * a.segment];
      }
#pragma unroll
      for (uint k = 0; k < kMaxStreams; k++) {
        if (k >= kSegments) break;
        float after = p[k] * added;
#pragma unroll
        for (uint j = 0; j < kMaxStreams; j++) {
          if (j < kSegments) after = fma(before[j], m[j * kSegments + k], after);
        }
        streams[k * a.segment] = after;
        out[k * kChunk] = after;
      }
    }
  } else {
    for (uint i = thread_index; i < kTokens * kSegments * kChunk; i += 32 * kMixGroups) {
      const uint t = i / (kSegments * kChunk), j = i / kChunk % kSegments;
      const uint channel = first + i % kChunk;
      float value = 0;
      if (t < n_tokens && channel < a.segment) {
        const uint token = kGather != 0 ? uint(rows[token0 + t]) : token0 + t;
        value = X[ulong(token) * width + j * a.segment + channel];
      }
      x[i] = value;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const bool plain = kType == kWeightF32 || kType == kWeightF16 || kType == kWeightBF16;
  for (uint row0 = simd_index * kRows; row0 < a.n_mixes; row0 += kMixGroups * kRows) {
    float sums[kRows][kMaxTokens];
#pragma unroll
    for (uint r = 0; r < kRows; r++) {
#pragma unroll
      for (uint t = 0; t < kMaxTokens; t++) sums[r][t] = 0;
    }
    // Rows past the last repeat it; their sums are dropped.
    device const uchar* row[kRows];
#pragma unroll
    for (uint r = 0; r < kRows; r++)
      row[r] = fn + ulong(min(row0 + r, a.n_mixes - 1)) * a.fn_row_bytes;
    if (plain) {
      for (uint q = lane; q < kSegments * kChunk / 4; q += 32) {
        const uint j = q / (kChunk / 4), c = q % (kChunk / 4) * 4;
        if (first + c >= a.segment) continue;
        const uint n_valid = a.segment - first - c;
        float4 w[kRows];
#pragma unroll
        for (uint r = 0; r < kRows; r++)
          w[r] = load4_weights(row[r], j * a.segment + first + c, n_valid);
#pragma unroll
        for (uint t = 0; t < kMaxTokens; t++) {
          if (t >= kTokens) break;
          const float4 v = *(threadgroup const float4*)(x + (t * kSegments + j) * kChunk + c);
#pragma unroll
          for (uint r = 0; r < kRows; r++) sums[r][t] += dot(w[r], v);
        }
      }
    } else {
      for (uint q = lane; q < kSegments * kChunk / 16; q += 32) {
        const uint j = q / (kChunk / 16), c = q % (kChunk / 16) * 16;
        if (first + c >= a.segment) continue;
#pragma unroll
        for (uint r = 0; r < kRows; r++) {
          float4 w[4];
          dequant16(kType, row[r], fn_scales, j * a.segment + first + c, width, w);
#pragma unroll
          for (uint t = 0; t < kMaxTokens; t++) {
            if (t >= kTokens) break;
            threadgroup const float4* v =
                (threadgroup const float4*)(x + (t * kSegments + j) * kChunk + c);
            sums[r][t] += dot(w[0], v[0]) + dot(w[1], v[1]) + dot(w[2], v[2]) + dot(w[3], v[3]);
          }
        }
      }
    }
#pragma unroll
    for (uint r = 0; r < kRows; r++) {
#pragma unroll
      for (uint t = 0; t < kMaxTokens; t++) {
        if (t >= kTokens) break;
        const float sum = simd_sum(sums[r][t]);
        if (lane == 0 && row0 + r < a.n_mixes && t < n_tokens) {
          partials[(ulong(token0 + t) * (a.n_mixes + 1) + row0 + r) * a.n_chunks + group.x] = sum;
        }
      }
    }
  }
  for (uint t = simd_index; t < n_tokens; t += kMixGroups) {
    float sum = 0;
    for (uint q = lane; q < kSegments * kChunk / 4; q += 32) {
      const float4 v = *(threadgroup const float4*)(x + t * kSegments * kChunk + q * 4);
      sum += dot(v, v);
    }
    sum = simd_sum(sum);
    if (lane == 0)
      partials[(ulong(token0 + t) * (a.n_mixes + 1) + a.n_mixes) * a.n_chunks + group.x] = sum;
  }
}

// Reductions over the lanes that hold the columns of comb; the others hold neutral values.
static inline float columns_sum(float v) {
  for (ushort m = 1; m < kStreams; m <<= 1) v += simd_shuffle_xor(v, m);
  return v;
}
static inline float columns_max(float v) {
  for (ushort m = 1; m < kStreams; m <<= 1) v = max(v, simd_shuffle_xor(v, m));
  return v;
}

// Softmax over each row, then Sinkhorn's alternation [V4 4.2]. Lane k has column k of comb, so
// columns are summed in registers and rows across lanes. Lanes without a column add zeros: they
// never divide, for 0 / 0 would reach the others.
GREBE_INLINE void mix_comb(
    constant HyperArgs& a,
    threadgroup const float* mix,
    float r,
    device const float* base,
    float scale,
    device float* comb,
    uint lane) {
  const bool used = lane < kStreams;
  float c[kMaxStreams];
#pragma unroll
  for (uint j = 0; j < kMaxStreams; j++) {
    if (j >= kStreams) break;
    const uint i = j * kStreams + (used ? lane : 0);
    const float logit = used ? mix[i] * r * scale + base[i] : -INFINITY;
    const float top = columns_max(logit);
    const float e = used ? exp(logit - top) : 0.f;
    const float sum = columns_sum(e);
    c[j] = used ? e / sum + a.hc_eps : 0.f;
  }
  for (uint iteration = 0; iteration < a.sinkhorn_iters; iteration++) {
    if (iteration > 0) {
#pragma unroll
      for (uint j = 0; j < kMaxStreams; j++) {
        if (j >= kStreams) break;
        const float row_sum = columns_sum(c[j]) + a.hc_eps;
        if (used) c[j] /= row_sum;
      }
    }
    float sum = a.hc_eps;
#pragma unroll
    for (uint j = 0; j < kMaxStreams; j++) {
      if (j < kStreams) sum += c[j];
    }
#pragma unroll
    for (uint j = 0; j < kMaxStreams; j++) {
      if (used && j < kStreams) c[j] /= sum;
    }
  }
  if (!used) return;
#pragma unroll
  for (uint j = 0; j < kMaxStreams; j++) {
    if (j < kStreams) comb[j * kStreams + lane] = c[j];
  }
}

// What the partial products say of a token. Threadgroup [t, 0] makes x, [t, 1] post and comb: the
// two run side by side.
//   x     f32[n, hidden] out = rms_norm(sum_j pre[j] X[j]) * norm
//   post  f32[n, s] out, comb f32[n, s, s] out
// Grid: [n, 2], or [n, 1] for the output head, which has neither.
[[kernel, max_total_threads_per_threadgroup(1024)]] void hc_finish(
    constant HyperArgs& a [[buffer(0)]],
    device const float* partials [[buffer(1)]],
    device const float* X [[buffer(2)]],
    device const int* rows [[buffer(3)]],
    device const float* base [[buffer(4)]],
    device const float* scale [[buffer(5)]],
    device const float* norm [[buffer(6)]],
    device float* x [[buffer(7)]],
    device float* post [[buffer(8)]],
    device float* comb [[buffer(9)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint n_simds [[simdgroups_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float mix[(2 + 8) * 8 + 1];
  threadgroup float sums[32];
  const uint t = group.x, s = kStreams, n_threads = n_simds * 32;
  const bool makes_x = group.y == 0;
  // Of the products, x needs the first s and the others the rest; both need the squares.
  const uint begin = makes_x ? 0 : s, n_rows = (makes_x ? s : a.n_mixes - s) + 1;
  for (uint i = simd_index; i < n_rows; i += n_simds) {
    const uint r = i + 1 < n_rows ? begin + i : a.n_mixes;
    device const float* p = partials + (ulong(t) * (a.n_mixes + 1) + r) * a.n_chunks;
    float sum = 0;
    for (uint c = lane; c < a.n_chunks; c += 32) sum += p[c];
    sum = simd_sum(sum);
    if (lane == 0) mix[r] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float r = 1.f / sqrt(mix[a.n_mixes] / float(s * a.hidden) + a.rms_eps);

  if (!makes_x) {
    if (simd_index != 0) return;
    if (lane < s) post[t * s + lane] = 2.f * sigmoid(mix[s + lane] * r * scale[1] + base[s + lane]);
    return mix_comb(a, mix + 2 * s, r, base + 2 * s, scale[2], comb + t * s * s, lane);
  }

  float pre[kMaxStreams];
#pragma unroll
  for (uint j = 0; j < kMaxStreams; j++) {
    if (j < s) pre[j] = sigmoid(mix[j] * r * scale[0] + base[j]) + a.hc_eps;
  }
  const uint token = kGather != 0 ? uint(rows[t]) : t;
  device const float* streams = X + ulong(token) * s * a.hidden;
  device float* out = x + ulong(t) * a.hidden;
  float squares = 0;
  if (a.hidden % 4 == 0) {
    for (uint c = thread_index * 4; c < a.hidden; c += n_threads * 4) {
      float4 v = 0;
#pragma unroll
      for (uint j = 0; j < kMaxStreams; j++) {
        if (j >= s) break;
        v = fma(*(device const float4*)(streams + j * a.hidden + c), float4(pre[j]), v);
      }
      *(device float4*)(out + c) = v;
      squares += dot(v, v);
    }
  } else {
    for (uint c = thread_index; c < a.hidden; c += n_threads) {
      float v = 0;
#pragma unroll
      for (uint j = 0; j < kMaxStreams; j++) {
        if (j < s) v = fma(streams[j * a.hidden + c], pre[j], v);
      }
      out[c] = v;
      squares += v * v;
    }
  }
  const float total = threadgroup_sum(squares, sums, simd_index, n_simds, lane);
  const float factor = 1.f / sqrt(total / float(a.hidden) + a.rms_eps);
  // Each thread scales what it has written itself.
  if (a.hidden % 4 == 0) {
    for (uint c = thread_index * 4; c < a.hidden; c += n_threads * 4) {
      device float4* p = (device float4*)(out + c);
      *p = *p * factor * *(device const float4*)(norm + c);
    }
  } else {
    for (uint c = thread_index; c < a.hidden; c += n_threads) out[c] = out[c] * factor * norm[c];
  }
}

// X[k] = post[k] y + sum_j comb[j, k] X[j] in place, where no hc_mix follows. A thread has one
// channel of all streams. Grid: [hidden / 256, n], 256 threads.
[[kernel, max_total_threads_per_threadgroup(256)]] void hc_post(
    constant HyperArgs& a [[buffer(0)]],
    device float* X [[buffer(1)]],
    device const float* y [[buffer(2)]],
    device const float* post [[buffer(3)]],
    device const float* comb [[buffer(4)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  const uint channel = group.x * 256 + thread_index, t = group.y, s = kStreams;
  if (channel >= a.hidden) return;
  device float* streams = X + ulong(t) * s * a.hidden + channel;
  const float added = y[ulong(t) * a.hidden + channel];
  float before[kMaxStreams];
#pragma unroll
  for (uint j = 0; j < kMaxStreams; j++) {
    if (j < s) before[j] = streams[j * a.hidden];
  }
#pragma unroll
  for (uint k = 0; k < kMaxStreams; k++) {
    if (k >= s) break;
    float after = post[t * s + k] * added;
#pragma unroll
    for (uint j = 0; j < kMaxStreams; j++) {
      if (j < s) after = fma(before[j], comb[(t * s + j) * s + k], after);
    }
    streams[k * a.hidden] = after;
  }
}
