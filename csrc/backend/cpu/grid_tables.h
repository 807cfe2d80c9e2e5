// Grids and signs of the IQ types expanded to bytes, for instruction sets that look them up from
// memory.
#pragma once

#include <array>

#include "quant/dequant.h"

namespace grebe::cpu {

template <int kEntries>
using GridTable = std::array<uint64_t, kEntries>;

constexpr uint64_t expand_grid2(uint16_t entry) {
  uint64_t v = 0;
  for (int i = 0; i < 8; i++)
    v |= static_cast<uint64_t>(kGridValues2[entry >> (2 * i) & 3]) << (8 * i);
  return v;
}
constexpr uint32_t expand_grid3(uint16_t entry) {
  uint32_t v = 0;
  for (int i = 0; i < 4; i++)
    v |= static_cast<uint32_t>(kGridValues3[entry >> (3 * i) & 7]) << (8 * i);
  return v;
}

/// Eight magnitudes an entry.
inline constexpr std::array<uint64_t, 256> kBytesIQ2_XXS = [] {
  std::array<uint64_t, 256> t{};
  for (int i = 0; i < 256; i++) t[i] = expand_grid2(kGridIQ2_XXS[i]);
  return t;
}();
inline constexpr std::array<uint64_t, 1024> kBytesIQ2_S = [] {
  std::array<uint64_t, 1024> t{};
  for (int i = 0; i < 1024; i++) t[i] = expand_grid2(kGridIQ2_S[i]);
  return t;
}();
/// Four magnitudes an entry.
inline constexpr std::array<uint32_t, 256> kBytesIQ3_XXS = [] {
  std::array<uint32_t, 256> t{};
  for (int i = 0; i < 256; i++) t[i] = expand_grid3(kGridIQ3_XXS[i]);
  return t;
}();

/// 0xff where a sign bit is set.
inline constexpr std::array<uint64_t, 256> kSignMasks = [] {
  std::array<uint64_t, 256> t{};
  for (int s = 0; s < 256; s++)
    for (int i = 0; i < 8; i++) t[s] |= s >> i & 1 ? 0xffull << (8 * i) : 0;
  return t;
}();
/// The same for 7-bit codes, whose eighth bit makes the parity even.
inline constexpr std::array<uint64_t, 128> kParitySignMasks = [] {
  std::array<uint64_t, 128> t{};
  for (int s = 0; s < 128; s++)
    t[s] = kSignMasks[s | (std::popcount(static_cast<unsigned>(s)) & 1) << 7];
  return t;
}();

}  // namespace grebe::cpu
