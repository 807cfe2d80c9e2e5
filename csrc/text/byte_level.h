// The byte-level alphabet of GPT-2: every byte has a printable character, so that tokens are
// strings.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "text/utf8.h"

namespace grebe {

/// Characters of the byte-level alphabet -> bytes; -1 for others. Printable Latin-1 stands for
/// itself, the 68 other byte values for U+0100 onwards in order.
constexpr std::array<int16_t, 0x144> make_byte_of_char() {
  std::array<int16_t, 0x144> table{};
  for (auto& entry : table) entry = -1;
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    table[printable ? b : next++] = static_cast<int16_t>(b);
  }
  return table;
}
inline constexpr auto kByteOfChar = make_byte_of_char();

/// Appends the bytes that `token` stands for; false (and nothing appended) when a character is not
/// of the alphabet.
inline bool append_token_bytes(std::string_view token, std::string& out) {
  const size_t size_before = out.size();
  for (size_t i = 0; i < token.size();) {
    const Utf8Char c = decode_utf8(token, i);
    const int byte = c.valid && c.code_point < kByteOfChar.size() ? kByteOfChar[c.code_point] : -1;
    if (byte < 0) {
      out.resize(size_before);
      return false;
    }
    out.push_back(static_cast<char>(byte));
    i += c.length;
  }
  return true;
}

}  // namespace grebe
