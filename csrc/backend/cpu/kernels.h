// The table of inner kernels: what each instruction set must provide. Loops, threads and memory are
// in matmul.cpp and moe.cpp.
//
// Every table gives the same bits for the same input; the order of float operations is written in
// matmul.h and the integer parts are exact. The scalar table is the reference and leaves the
// optional entries null.
//
// Two ways to multiply with a quantized weight. `matvec` reads the blocks as they are: one row of
// x, or a few. For more rows `pack_panel` transcodes panel_rows rows once into bytes whose lanes
// are weight rows, and `multiply` runs them against tiles of up to max_tile rows of x, so the float
// accumulation is lane by lane and there are no horizontal sums.
#pragma once

#include <cstdint>

#include "core/cpu_features.h"
#include "core/dtype.h"

namespace grebe::cpu {

/// One row of x quantized in groups of 32 or 256. A group that holds a value which is not finite
/// has d = NaN and q = 0, so that NaN reaches y.
struct ActRow {
  const int8_t* q;      ///< i8[n_in]
  const float* d;       ///< f32[n_in / group]
  const int16_t* sums;  ///< i16[n_in / 16]: sums of q
};

/// What accompanies the codes in tiles of x and panels of w.
enum class TileLayout : uint8_t {
  k32,         ///< 32-weight blocks
  kScale16,    ///< 256-weight blocks, signed codes, a scale per 16
  kScale32,    ///< 256-weight blocks, signed codes, a scale per 32
  kMins,       ///< 256-weight blocks, unsigned codes with the scales folded in, a minimum per 16
  kScaleMins,  ///< 256-weight blocks, unsigned codes, a scale and a minimum per 32
};
inline constexpr int kNumLayouts = 5;

/// Kernels of one quantized type. `w` points to n_rows rows, row_bytes apart.
struct QuantKernels {
  /// y[t * y_stride + r] for n rows of x.
  void (*matvec)(
      const uint8_t* w,
      int64_t row_bytes,
      int64_t n_rows,
      int64_t n_in,
      const ActRow* x,
      int64_t n,
      float* y,
      int64_t y_stride) = nullptr;
  /// Up to panel_rows rows; the panel's missing rows are zero. Null: this table has only matvec for
  /// the type.
  void (*pack_panel)(
      const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) = nullptr;
  TileLayout layout = TileLayout::k32;
};

struct LayoutKernels {
  int64_t panel_block_bytes = 0;  ///< bytes of a panel per block of n_in
  int64_t tile_block_bytes = 0;   ///< bytes of a tile per block of n_in and row of x
  /// y[t * y_stride + r] for the n rows of x in a tile and n_rows <= panel_rows. `resume`: go on
  /// from the sums in y, so that a long row can be cut into parts of whole blocks without changing
  /// a bit.
  void (*multiply)(
      const uint8_t* panel,
      int64_t n_rows,
      int64_t n_in,
      const uint8_t* tile,
      int n,
      float* y,
      int64_t y_stride,
      bool resume) = nullptr;
  void (*pack_tile)(const ActRow* x, int n, int64_t n_in, uint8_t* tile) = nullptr;
};

using MultiplyFloat = void (*)(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const float* x,
    int64_t x_stride,
    int64_t n,
    float* y,
    int64_t y_stride);

/// Quantized types in the order of KernelTable::quant.
enum QuantIndex {
  kQ8_0,
  kMXFP4,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ2_XXS,
  kIQ2_S,
  kIQ3_XXS,
  kNumQuant
};

/// Index of a quantized type, -1 for the others.
constexpr int quant_index(DType t) {
  switch (t) {
    case DType::kQ8_0:
      return kQ8_0;
    case DType::kMXFP4:
      return kMXFP4;
    case DType::kQ2_K:
      return kQ2_K;
    case DType::kQ3_K:
      return kQ3_K;
    case DType::kQ4_K:
      return kQ4_K;
    case DType::kQ5_K:
      return kQ5_K;
    case DType::kQ6_K:
      return kQ6_K;
    case DType::kIQ2_XXS:
      return kIQ2_XXS;
    case DType::kIQ2_S:
      return kIQ2_S;
    case DType::kIQ3_XXS:
      return kIQ3_XXS;
    default:
      return -1;
  }
}

struct KernelTable {
  Isa isa = Isa::kScalar;
  int panel_rows = 16;
  int max_tile = 12;
  int min_tile_rows = 4;  ///< rows of x from which panels pay

  /// x[n] in groups of 32 or 256 (n a multiple of it) to q[n], d[n / group], sums[n / 16].
  void (*quantize)(const float* x, int64_t n, int group, int8_t* q, float* d, int16_t* sums) =
      nullptr;
  QuantKernels quant[kNumQuant];
  LayoutKernels layouts[kNumLayouts];
  MultiplyFloat multiply_f32 = nullptr;
  MultiplyFloat multiply_f16 = nullptr;
  MultiplyFloat multiply_bf16 = nullptr;
  /// One row of E4M3 codes with an E8M0 scale per 128, exactly as dequantize_f8() of
  /// quant/dequant.h.
  void (*dequantize_f8)(const uint8_t* codes, const uint8_t* scales, int64_t n, float* out) =
      nullptr;
  /// gate = silu(min(gate, clamp)) * clip(up, +-clamp) * weight; no clipping when clamp is 0.
  void (*swiglu)(float* gate, const float* up, int64_t n, float clamp, float weight) = nullptr;
};

/// The table of an instruction set in available_isas(); throws BackendUnavailable for one that is
/// not in this build.
const KernelTable& kernel_table(Isa isa);

}  // namespace grebe::cpu
