// The end of a sublayer in a decode step: the SIMD-groups that have just made rows y of its output
// add them to the residual streams [V4 4.3] and multiply what comes out with the next
// hyper-connection's fn [V4 4.2]. What is left for hc_finish is to add the partial products.
//
// Saves hc_mix as a dispatch of its own, with its barrier: two of thirteen a layer.
#pragma once

#include <metal_stdlib>

#include "args/hyper_args.h"
#include "args/weight_type.h"
#include "formats.h"
#include "inline.h"

constant uint kUpdateStreams [[function_constant(13)]];  // 0: no update, else 1, 2, 4 or 8
constant uint kUpdateType [[function_constant(14)]];     // of fn: F32, F16 or BF16

// Weights of fn that a lane asks for before it waits for any: all 13 of 4 streams and rows of four.
constant constexpr uint kUpdateBlock = 16;

// Elements row0, row0 + n_step, ... of column `column` of fn[n_rows, width]; zeros past the last.
GREBE_INLINE void load_column(
    device const uchar* fn,
    uint row0,
    uint n_step,
    uint n_rows,
    uint width,
    uint column,
    thread float* w) {
#pragma unroll
  for (uint b = 0; b < kUpdateBlock; b++) {
    const uint m = row0 + b * n_step;
    w[b] = 0.f;
    if (m >= n_rows) continue;
    const ulong at = ulong(m) * width + column;
    if (kUpdateType == grebe::kWeightF32) {
      w[b] = ((device const float*)fn)[at];
    } else if (kUpdateType == grebe::kWeightF16) {
      w[b] = float(((device const half*)fn)[at]);
    } else {
      w[b] = bf16_to_float(((device const ushort*)fn)[at]);
    }
  }
}

/// Rows first .. first + kRows - 1 of y, of one token; lane r has that of row first + r. Rows from
/// a.hidden on do not exist. Every SIMD-group of the threadgroup calls this.
///   X         f32[s, hidden] in place
///   post      f32[s], comb f32[s, s]
///   partials  f32[n_mixes + 1, n_chunks] out, column `group`; the last row is of the squares
///   sums      f32[n_sg, n_mixes + 1]
template <uint kRows>
GREBE_INLINE void update_streams(
    constant grebe::StreamUpdateArgs& a,
    uint first,
    float y,
    device float* X,
    device const float* post,
    device const float* comb,
    device const uchar* fn,
    device float* partials,
    threadgroup float* sums,
    uint group,
    uint sg,
    uint n_sg,
    uint lane) {
  const uint s = kUpdateStreams, n_mixes = (2 + s) * s;  // known when the pipeline is made
  // Lane i of each set of kRows s has stream i / kRows of row i % kRows; the sets share out the
  // rows of fn.
  const uint n_values = kRows * s, n_sets = 32 / n_values;
  const uint set = lane / n_values, i = lane % n_values, k = i / kRows, r = i % kRows;
  const uint row = first + r;
  const bool exists = row < a.hidden;

  const uint column = k * a.hidden + metal::min(row, a.hidden - 1), width = s * a.hidden;
  float w[kUpdateBlock];
  load_column(fn, set, n_sets, n_mixes, width, column, w);

  // The first set reads and writes the streams, each lane its own value.
  float x = set == 0 && exists ? X[k * a.hidden + row] : 0.f;
  x = metal::simd_shuffle(x, ushort(i));
  float after = post[k] * metal::simd_shuffle(y, ushort(r));
#pragma unroll
  for (uint j = 0; j < 8; j++) {
    if (j >= s) break;
    after = metal::fma(metal::simd_shuffle(x, ushort(j * kRows + r)), comb[j * s + k], after);
  }
  if (!exists) after = 0.f;
  if (set == 0 && exists) X[k * a.hidden + row] = after;

  threadgroup float* mine = sums + sg * (n_mixes + 1);
  for (uint m0 = 0; m0 <= n_mixes; m0 += kUpdateBlock * n_sets) {
    if (m0 > 0) load_column(fn, m0 + set, n_sets, n_mixes, width, column, w);
#pragma unroll
    for (uint b = 0; b < kUpdateBlock; b++) {
      if (m0 + b * n_sets > n_mixes) break;
      const uint m = m0 + b * n_sets + set;
      float sum = (m == n_mixes ? after : w[b]) * after;
#pragma unroll
      for (uint step = 16; step > 0; step /= 2) {
        if (step < n_values) sum += metal::simd_shuffle_xor(sum, ushort(step));
      }
      if (i == 0 && m <= n_mixes) mine[m] = sum;
    }
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  for (uint m = sg * 32 + lane; m <= n_mixes; m += n_sg * 32) {
    float sum = 0.f;
    for (uint g = 0; g < n_sg; g++) sum += sums[g * (n_mixes + 1) + m];
    partials[m * a.n_chunks + group] = sum;
  }
}
