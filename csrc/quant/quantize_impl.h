// The quantizers of one instruction set; the including file names it.
#pragma once

#include "quant/quantize_affine.h"
#include "quant/quantize_grid.h"
#include "quant/quantize_mxfp4.h"
#include "quant/quantize_q6_k.h"
#include "quant/quantize_q8_0.h"
#include "quant/quantize_row.h"

namespace grebe::quant::GREBE_ISA {

RowFn row_fn(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return quantize_q8_0;
    case DType::kQ2_K:
      return quantize_q2_k;
    case DType::kQ4_K:
      return quantize_k4<BlockQ4_K, 15>;
    case DType::kQ5_K:
      return quantize_k4<BlockQ5_K, 31>;
    case DType::kQ6_K:
      return quantize_q6_k;
    case DType::kIQ2_XXS:
      return quantize_grid<GridIQ2_XXS>;
    case DType::kIQ2_S:
      return quantize_grid<GridIQ2_S>;
    case DType::kIQ3_XXS:
      return quantize_grid<GridIQ3_XXS>;
    case DType::kMXFP4:
      return quantize_mxfp4;
    default:
      return nullptr;
  }
}

}  // namespace grebe::quant::GREBE_ISA
