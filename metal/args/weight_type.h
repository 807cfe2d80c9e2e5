// Weight types as kernels know them: values of function constants.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

enum WeightType : uint32_t {
  kWeightF32 = 0,
  kWeightF16 = 1,
  kWeightBF16 = 2,
  kWeightF8 = 3,  // E4M3 codes; E8M0 scales of 128 x 128 tiles in a buffer of their own
  kWeightQ8_0 = 4,
  kWeightMXFP4 = 5,
  kWeightQ2_K = 6,
  kWeightQ3_K = 7,
  kWeightQ4_K = 8,
  kWeightQ5_K = 9,
  kWeightQ6_K = 10,
  kWeightIQ2_XXS = 11,
  kWeightIQ2_S = 12,
  kWeightIQ3_XXS = 13,
};

}  // namespace grebe
