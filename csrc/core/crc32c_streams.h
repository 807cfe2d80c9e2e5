// CRC-32C by instruction: three streams, joined by carry-less products. Included by one source per
// instruction set.
//
// The instruction takes a word each cycle but gives its result three cycles later, so a piece of
// data is cut into three equal streams that advance together. Their remainders r0, r1, r2 join as
// r0 x^(2L) + r1 x^L + r2 with L the bits of a stream: two products by constants, of 63 bits each,
// which the last instruction of the third stream reduces along with its own word.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace grebe::detail {

constexpr size_t kMaxStreamWords = 256;  // 6 KB in a piece: a page of rows is one

// Entry k: x^(64 k - 33) modulo the polynomial, bit 31 - i for x^i. A product of two such numbers
// is one position short of a word of data, and the instruction multiplies by x^32: hence the 33.
constexpr auto kStreamShift = [] {
  std::array<uint32_t, 2 * kMaxStreamWords + 1> t{};
  uint32_t c = 1;  // x^31
  for (size_t k = 1; k < t.size(); k++) {
    t[k] = c;
    for (int i = 0; i < 64; i++) c = (c & 1) != 0 ? c >> 1 ^ 0x82f63b78u : c >> 1;
  }
  return t;
}();

inline uint64_t load_word(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);  // little endian, as all our files
  return v;
}

// Machine: word(crc, u64) and byte(crc, u8) are the instruction, product(u32, u32) without carries.
template <class Machine>
uint32_t crc32c_streams(const uint8_t* p, size_t n, uint32_t crc) {
  crc = ~crc;
  while (n >= 3 * 8 * 8) {  // shorter ones gain nothing
    size_t words = n / 24;
    if (words > kMaxStreamWords) words = kMaxStreamWords;
    const uint8_t *q = p + words * 8, *r = q + words * 8;
    uint32_t c0 = crc, c1 = 0, c2 = 0;
    for (size_t i = 0; i < words - 1; i++) {
      c0 = Machine::word(c0, load_word(p + i * 8));
      c1 = Machine::word(c1, load_word(q + i * 8));
      c2 = Machine::word(c2, load_word(r + i * 8));
    }
    const size_t last = (words - 1) * 8;
    c0 = Machine::word(c0, load_word(p + last));
    c1 = Machine::word(c1, load_word(q + last));
    const uint64_t join =
        Machine::product(c0, kStreamShift[2 * words]) ^ Machine::product(c1, kStreamShift[words]);
    crc = Machine::word(c2, load_word(r + last) ^ join);
    p += words * 24;
    n -= words * 24;
  }
  for (; n >= 8; n -= 8, p += 8) crc = Machine::word(crc, load_word(p));
  for (; n > 0; n--) crc = Machine::byte(crc, *p++);
  return ~crc;
}

}  // namespace grebe::detail
