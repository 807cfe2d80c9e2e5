#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace grebe {

std::vector<float> rope_frequencies(const ModelConfig& c, bool compressed_layer) {
  const int half = c.rope_dim / 2;
  const float theta = compressed_layer ? c.compress_rope_theta : c.rope_theta;
  std::vector<float> f(half);
  for (int i = 0; i < half; i++) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(c.rope_dim);
    f[i] = 1.f /
           static_cast<float>(std::pow(static_cast<double>(theta), static_cast<double>(exponent)));
  }
  if (!compressed_layer || c.yarn_factor <= 0.f || c.yarn_original_context <= 0) return f;

  // The dimension whose wavelength makes `rotations` turns within the original context.
  const auto dim_for = [&](double rotations) {
    return c.rope_dim * std::log(c.yarn_original_context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(static_cast<double>(theta)));
  };
  const double lo = std::max(std::floor(dim_for(c.yarn_beta_fast)), 0.0);
  const double hi =
      std::min(std::ceil(dim_for(c.yarn_beta_slow)), static_cast<double>(c.rope_dim - 1));
  const float span = static_cast<float>(std::max(hi - lo, 0.001));
  for (int i = 0; i < half; i++) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(lo)) / span, 0.f, 1.f);
    const float keep = 1.f - ramp;  // 1: the original frequency, 0: divided by the factor
    f[i] = f[i] / c.yarn_factor * (1.f - keep) + f[i] * keep;
  }
  return f;
}

void rope_angles(const std::vector<float>& frequencies, int64_t pos, float* cos, float* sin) {
  for (size_t i = 0; i < frequencies.size(); i++) {
    const double angle = static_cast<float>(pos) * frequencies[i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace grebe
