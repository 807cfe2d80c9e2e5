#include <arm_acle.h>
#include <arm_neon.h>

#include "core/crc32c_streams.h"

namespace grebe::detail {
namespace {

struct Armv8 {
  static uint32_t word(uint32_t crc, uint64_t v) { return __crc32cd(crc, v); }
  static uint32_t byte(uint32_t crc, uint8_t v) { return __crc32cb(crc, v); }
  static uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(vmull_p64(a, b)); }
};

}  // namespace

uint32_t crc32c_by_instruction(const void* data, size_t n, uint32_t crc) {
  return crc32c_streams<Armv8>(static_cast<const uint8_t*>(data), n, crc);
}

}  // namespace grebe::detail
