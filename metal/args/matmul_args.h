// Arguments of metal/matvec.metal and metal/matmul.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

#include "args/hyper_args.h"

namespace grebe {

/// Products of one dispatch of matvec: they share x and may differ in everything else.
enum : uint32_t { kMatvecProducts = 8 };

struct MatvecProduct {
  uint64_t row_bytes;
  uint32_t first_group;   // of the grid
  uint32_t slot;          // of the two weight types
  uint32_t n_rows;        // of a group
  uint32_t row_begin;     // of the weight, for the scales of F8
  uint32_t scale_stride;  // bytes of a row of tiles
  uint32_t y_stride;
};
static_assert(sizeof(MatvecProduct) == 32, "as on the other side");

/// Groups (grid.y; usually one): group g multiplies rows g n_rows ... with its own part of x.
struct MatvecArgs {
  MatvecProduct products[kMatvecProducts];
  uint32_t n_products, n_in, n_tokens;
  uint32_t x_stride, x_group_stride, y_group_stride;
  float eps;
  uint32_t padding;
  StreamUpdateArgs update;
};
static_assert(sizeof(MatvecArgs) == 32 * kMatvecProducts + 48, "as on the other side");

/// One product of matmul. Groups (grid.z) as above.
struct MatmulArgs {
  uint64_t row_bytes;
  uint32_t n_in, n_rows, n_tokens;
  uint32_t x_stride, y_stride, x_group_stride, y_group_stride;
  uint32_t row_begin, scale_stride, padding;
};
static_assert(sizeof(MatmulArgs) == 48, "as on the other side");

}  // namespace grebe
