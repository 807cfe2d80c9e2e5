#include "core/crc32c.h"

#include <array>
#include <cstring>

#include "core/cpu_features.h"

namespace grebe {
namespace detail {

// In the source of this processor's family.
uint32_t crc32c_by_instruction(const void* data, size_t n, uint32_t crc);

}  // namespace detail

namespace {

// Table k: the remainder of a byte followed by k zero bytes.
constexpr auto kTables = [] {
  std::array<std::array<uint32_t, 256>, 8> t{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = (c & 1) != 0 ? c >> 1 ^ 0x82f63b78u : c >> 1;
    t[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; i++)
    for (int k = 1; k < 8; k++) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 255];
  return t;
}();

}  // namespace

uint32_t crc32c_portable(const void* data, size_t n, uint32_t crc) {
  const auto& t = kTables;
  const uint8_t* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t v;
    std::memcpy(&v, p, 8);  // little endian, as all our files
    v ^= crc;
    crc = t[7][v & 255] ^ t[6][v >> 8 & 255] ^ t[5][v >> 16 & 255] ^ t[4][v >> 24 & 255] ^
          t[3][v >> 32 & 255] ^ t[2][v >> 40 & 255] ^ t[1][v >> 48 & 255] ^ t[0][v >> 56];
  }
  for (; n > 0; n--) crc = crc >> 8 ^ t[0][(crc ^ *p++) & 255];
  return ~crc;
}

uint32_t crc32c(const void* data, size_t n, uint32_t crc) {
  static const bool by_instruction = has_crc32c();
  return by_instruction ? detail::crc32c_by_instruction(data, n, crc)
                        : crc32c_portable(data, n, crc);
}

}  // namespace grebe
