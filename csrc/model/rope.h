// Rotation angles [V4 4.5].
//
// The official code multiplies position and frequency in f32 and then takes cos and sin; that
// product is reproduced, cos and sin are taken in double, so position 1,048,575 is as exact as
// position 1. YaRN changes the frequencies of the compressed layers only, without a magnitude
// factor.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace grebe {

/// rope_dim / 2 angular frequencies, f32 as in the official code. compressed_layer: base
/// compress_rope_theta with YaRN.
std::vector<float> rope_frequencies(const ModelConfig& config, bool compressed_layer);

/// cos and sin of pos * f for one position, f32[frequencies] each.
void rope_angles(const std::vector<float>& frequencies, int64_t pos, float* cos, float* sin);

}  // namespace grebe
