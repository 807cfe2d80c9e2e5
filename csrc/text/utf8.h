// One UTF-8 decoder for everything that reads text: strict (no overlong forms, no surrogates,
// nothing past U+10FFFF).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace grebe {

struct Utf8Char {
  uint32_t code_point;  ///< valid characters only
  uint8_t length;  ///< bytes of the character; when not valid, of the longest prefix that could
                   ///< have begun one (>= 1)
  bool valid;
  bool truncated;  ///< not valid only because the text ends here
};

/// Decodes the character at text[i], i < text.size(). An invalid sequence is cut as Unicode
/// recommends ("maximal subpart"), so one U+FFFD per unit gives what Python's errors="replace" and
/// Rust's from_utf8_lossy give.
inline Utf8Char decode_utf8(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<uint8_t>(text[i + k]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  // The second byte's range excludes overlong forms (E0, F0), surrogates (ED) and values past
  // U+10FFFF (F4).
  uint8_t length = 0, low = 0x80, high = 0xBF;
  uint32_t code_point = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2, code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3, code_point = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4, code_point = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {0, 1, false, false};
  }
  for (uint8_t k = 1; k < length; ++k) {
    if (i + k == text.size()) return {0, k, false, true};
    if (byte(k) < low || byte(k) > high) return {0, k, false, false};
    code_point = code_point << 6 | (byte(k) & 0x3F);
    low = 0x80, high = 0xBF;
  }
  return {code_point, length, true, false};
}

}  // namespace grebe
