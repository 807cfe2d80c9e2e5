// Matrix products of the CPU backend: dense layers and the mixture of experts.
//
// The contract that everything else leans on: the result of one row of x is a pure function of that
// row, the weight and the instruction table, so chunking, thread count and company never change a
// bit. It is met by one canonical order of float operations per (weight row, x row) pair, which the
// single-row kernels and the tiled ones both follow:
//   * 256-weight types (K and IQ): x is quantized to int8 with one f32 scale d_x per 256; within a
//   block everything is
//     exact int32, then acc = fma(d_w * d_x, float(isum), acc), and for types with minima
//     acc = fma(-(dmin_w * d_x), float(msum), acc); blocks in ascending order, one accumulator.
//   * 32-weight types (Q8_0, MXFP4): x is quantized to int8 with one f32 scale per 32; acc =
//   fma(d_w * d_x, float(isum), acc),
//     blocks in ascending order, one accumulator.
//   * float types (F32, F16, BF16, FP8 times its tile scale), and every type when `exact`: weights
//   become f32 exactly, x stays
//     f32; 16 accumulators, number j taking k = j mod 16 in ascending order by fma, then the fixed
//     tree
//     ((0+8)+(4+12)) ... = reduce16() in simd.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/weight.h"
#include "core/thread_pool.h"

namespace grebe::cpu {

struct KernelTable;

/// y[t, r] = sum_k w[row_begin + r, k] * x[t, k] for t < n, r < n_rows.
struct MatmulTask {
  const Weight* w = nullptr;
  int64_t row_begin = 0;
  int64_t n_rows = 0;        ///< row_begin + n_rows <= w->n_out
  const float* x = nullptr;  ///< f32[n, n_in], rows x_stride floats apart
  int64_t x_stride = 0;
  float* y = nullptr;  ///< f32[n, n_rows], rows y_stride floats apart
  int64_t y_stride = 0;
};

/// A layer's feed-forward part after routing:
///   h = swiglu(w1 x, w3 x) with g = min(g, clamp), u = clip(u, +-clamp) when clamp > 0; h scaled
///   by the routing weight; y[t] = sum over slots in ascending order of w2 h, starting from the
///   shared expert's output.
struct MoeTask {
  const Weight* gate = nullptr;  ///< [n_experts][ff, hidden]
  const Weight* up = nullptr;
  const Weight* down = nullptr;         ///< [n_experts][hidden, ff]
  const Weight* shared_gate = nullptr;  ///< null: no shared expert, y starts from zero
  const Weight* shared_up = nullptr;
  const Weight* shared_down = nullptr;
  const float* x = nullptr;               ///< f32[n, hidden], contiguous
  const int32_t* experts = nullptr;       ///< i32[n, n_used], each in [0, n_experts)
  const float* expert_weights = nullptr;  ///< f32[n, n_used]
  int64_t n = 0;
  int64_t n_used = 0;
  float clamp = 0.f;         ///< routed experts; 0: none
  float shared_clamp = 0.f;  ///< shared expert; 0: none
  float* y = nullptr;        ///< f32[n, hidden], contiguous
};

class Matmul {
 public:
  /// Keeps references to the pool and the table. `exact`: f32 activations for every type.
  Matmul(ThreadPool& pool, const KernelTable& kernels, bool exact);
  ~Matmul();

  /// All tasks read n rows; tasks with the same x share one quantization of it. n >= 1. Not
  /// thread-safe.
  void run(std::span<const MatmulTask> tasks, int64_t n);
  /// Experts are grouped over rows; each expert's weights are read once per call.
  void moe(const MoeTask& task);

  /// Bytes of scratch held now.
  uint64_t scratch_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Rows [row, row + n_rows) of one expert as f32, exactly. For embeddings, small tensors and tests.
void dequantize_rows(const Weight& w, int64_t i_expert, int64_t row, int64_t n_rows, float* out);

}  // namespace grebe::cpu
