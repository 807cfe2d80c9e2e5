// Tensor types as kernels name them.
#pragma once

#include "args/weight_type.h"
#include "core/dtype.h"
#include "core/error.h"

namespace grebe::metal {

inline WeightType weight_type(DType t) {
  switch (t) {
    case DType::kF32:
      return kWeightF32;
    case DType::kF16:
      return kWeightF16;
    case DType::kBF16:
      return kWeightBF16;
    case DType::kF8E4M3:
      return kWeightF8;
    case DType::kQ8_0:
      return kWeightQ8_0;
    case DType::kMXFP4:
      return kWeightMXFP4;
    case DType::kQ2_K:
      return kWeightQ2_K;
    case DType::kQ3_K:
      return kWeightQ3_K;
    case DType::kQ4_K:
      return kWeightQ4_K;
    case DType::kQ5_K:
      return kWeightQ5_K;
    case DType::kQ6_K:
      return kWeightQ6_K;
    case DType::kIQ2_XXS:
      return kWeightIQ2_XXS;
    case DType::kIQ2_S:
      return kWeightIQ2_S;
    case DType::kIQ3_XXS:
      return kWeightIQ3_XXS;
    default:
      throw Error("internal error: no Metal kernel for " + dtype_name(t));
  }
}

}  // namespace grebe::metal
