// Random weights of every type: valid blocks with sane scales, for tests and benchmarks.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "backend/weight.h"
#include "quant/blocks.h"

namespace grebe {

inline constexpr DType kWeightTypes[] = {
    DType::kF32,
    DType::kF16,
    DType::kBF16,
    DType::kQ8_0,
    DType::kQ2_K,
    DType::kQ3_K,
    DType::kQ4_K,
    DType::kQ5_K,
    DType::kQ6_K,
    DType::kIQ2_XXS,
    DType::kIQ3_XXS,
    DType::kIQ2_S,
    DType::kMXFP4,
    DType::kF8E4M3};

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {  // splitmix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1.f; }  // [-1, 1)

 private:
  uint64_t state_;
};

/// Sets the f16 scales of one block of random bytes to values around `d`.
inline void fix_block(DType t, uint8_t* p, Rng& rng) {
  const auto scale = [&](float around) {
    return f32_to_f16(around * (1.f + 0.5f * rng.uniform()));
  };
  const auto put = [&](size_t offset, uint16_t h) { std::memcpy(p + offset, &h, 2); };
  switch (t) {
    case DType::kF32: {
      const float f = rng.uniform();
      std::memcpy(p, &f, 4);
      break;
    }
    case DType::kF16:
      put(0, f32_to_f16(rng.uniform()));
      break;
    case DType::kBF16:
      put(0, f32_to_bf16(rng.uniform()));
      break;
    case DType::kQ8_0:
      put(0, scale(0.01f));
      break;
    case DType::kQ2_K:
      put(offsetof(BlockQ2_K, d), scale(0.05f));
      put(offsetof(BlockQ2_K, dmin), scale(0.07f));
      break;
    case DType::kQ3_K:
      put(offsetof(BlockQ3_K, d), scale(-0.01f));
      break;
    case DType::kQ4_K:
    case DType::kQ5_K:
      put(0, scale(0.002f));
      put(2, scale(0.02f));
      break;
    case DType::kQ6_K:
      put(offsetof(BlockQ6_K, d), scale(0.0005f));
      break;
    case DType::kIQ2_XXS:
    case DType::kIQ2_S:
      put(0, scale(0.015f));
      break;
    case DType::kIQ3_XXS:
      put(0, scale(-0.005f));
      break;
    case DType::kMXFP4:
      p[0] = static_cast<uint8_t>(120 + rng.next() % 8);
      break;
    case DType::kF8E4M3:
      if ((p[0] & 127) == 127) p[0] = 0;  // NaN
      break;
    default:
      break;
  }
}

/// A weight that owns its bytes, which end exactly at the end of an allocation, so that a sanitizer
/// sees reads past them.
struct OwnedWeight : Weight {
  std::vector<uint8_t> bytes, scales;

  OwnedWeight(DType t, int64_t in, int64_t out, int64_t experts, uint64_t seed) {
    dtype = t;
    n_in = in;
    n_out = out;
    n_experts = experts;
    Rng rng(seed);
    bytes.resize(n_bytes());
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      const uint64_t r = rng.next();
      std::memcpy(bytes.data() + i, &r, 8);
    }
    const DTypeInfo info = dtype_info(t);
    for (size_t i = 0; i < bytes.size(); i += info.block_bytes) fix_block(t, bytes.data() + i, rng);
    data = bytes.data();
    if (t == DType::kF8E4M3) {
      scales.resize(static_cast<size_t>((out + 127) / 128 * ((in + 127) / 128) * experts));
      for (uint8_t& s : scales) s = static_cast<uint8_t>(118 + rng.next() % 4);
      scale = scales.data();
    }
  }
  OwnedWeight(const OwnedWeight&) = delete;
  OwnedWeight& operator=(const OwnedWeight&) = delete;
};

inline std::vector<float> random_x(int64_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = rng.uniform() * (1.f + 3.f * static_cast<float>(rng.next() % 16 == 0));
  return x;
}

}  // namespace grebe
