#include <immintrin.h>

#include "core/crc32c_streams.h"

namespace grebe::detail {
namespace {

struct Sse42 {
  static uint32_t word(uint32_t crc, uint64_t v) {
    return static_cast<uint32_t>(_mm_crc32_u64(crc, v));
  }
  static uint32_t byte(uint32_t crc, uint8_t v) { return _mm_crc32_u8(crc, v); }
  static uint64_t product(uint32_t a, uint32_t b) {
    const __m128i x = _mm_cvtsi32_si128(static_cast<int>(a));
    const __m128i y = _mm_cvtsi32_si128(static_cast<int>(b));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_clmulepi64_si128(x, y, 0)));
  }
};

}  // namespace

uint32_t crc32c_by_instruction(const void* data, size_t n, uint32_t crc) {
  return crc32c_streams<Sse42>(static_cast<const uint8_t*>(data), n, crc);
}

}  // namespace grebe::detail
