// What launching any kernel over weights needs to know: types, alignment, tiles.
#pragma once

#include <cstdint>

#include "backend/metal/weight_types.h"
#include "backend/weight.h"

namespace grebe::metal {

/// More vectors than this go through matrix units (matmul.metal), fewer through matvec.metal.
inline constexpr int64_t kMatvecTokens = 8;

// As gemm_tile.h says.
inline constexpr uint32_t kTileRows = 64, kTileThreads = 128;

/// SIMD-groups of a threadgroup that works on rows: few, since they share nothing; more when they
/// first fill a table of the grids together.
inline constexpr uint32_t kSimdGroups = 4, kGridSimdGroups = 8;

/// Function constant of lane_weights.h: rows of F8 begin at multiples of 8 bytes.
inline constexpr uint32_t kAlignedRowsConstant = 15;

inline bool rows_aligned(const Weight& w) {
  return w.dtype != DType::kF8E4M3 ||
         (reinterpret_cast<uintptr_t>(w.data) % 8 == 0 && w.row_bytes() % 8 == 0);
}

/// Bytes of a row of scale tiles.
inline uint32_t scale_stride(const Weight& w) {
  return w.dtype == DType::kF8E4M3 ? static_cast<uint32_t>((w.n_in + 127) / 128) : 0;
}

/// What n_rows rows occupy in the file, scales included.
inline uint64_t rows_bytes(const Weight& w, uint64_t n_rows) {
  return n_rows * w.row_bytes() + (n_rows + 127) / 128 * scale_stride(w);
}

/// Threadgroup memory for the type's grid: half4 entries, as fill_grid() writes them.
inline uint64_t grid_table_bytes(DType t) {
  return t == DType::kIQ2_XXS ? 512 * 8 : t == DType::kIQ3_XXS ? 256 * 8 : 0;
}

/// Rows of a SIMD-group and vectors of a kernel of matvec.metal.
struct MatvecTile {
  const char* kernel;
  int64_t rows;
};
inline MatvecTile matvec_tile(int64_t n, int64_t n_rows) {
  // Below this four rows at a time would leave a large GPU with a handful of SIMD-groups a core.
  constexpr int64_t kFewRows = 2048;
  if (n == 1)
    return n_rows < kFewRows ? MatvecTile{"matvec_r1_t1", 1} : MatvecTile{"matvec_r4_t1", 4};
  if (n == 2) return {"matvec_r4_t2", 4};
  if (n <= 4) return {"matvec_r4_t4", 4};
  return {"matvec_r2_t8", 2};
}

/// Whether tiles are of float: in exact mode, and for weights of floats, whose products (router,
/// compressors) choose things and are a small part of the work. The CPU keeps x in float there too.
inline bool float_tiles(bool exact, DType t) {
  return exact || t == DType::kF32 || t == DType::kF16 || t == DType::kBF16;
}

/// Tokens of a tile for n of them: 16, 32 or 64.
inline uint32_t tile_tokens(int64_t n) { return n <= 16 ? 16 : n <= 32 ? 32 : 64; }

}  // namespace grebe::metal
