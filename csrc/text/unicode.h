// Character classes as the reference regex engine sees them (tables: tools/generate_unicode.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

namespace grebe {

/// Bits of a character's class. The general categories and White_Space are disjoint; the last two
/// are additions of the pre-tokenizer: CR and LF, and its range list [一-龥 hiragana katakana]
/// (code blocks, with their unassigned holes).
enum CharClass : uint8_t {
  kLetter = 1,
  kMark = 2,
  kNumber = 4,
  kPunct = 8,
  kSymbol = 16,
  kSpace = 32,
  kNewline = 64,
  kCjk = 128,
};

class UnicodeClasses {
 public:
  static const UnicodeClasses& get() {
    static const UnicodeClasses classes;
    return classes;
  }

  /// Bits of CharClass, 0 for control, format, private and unassigned code points.
  uint8_t of(uint32_t code_point) const {
    if (code_point < kBmpEnd) return bmp_[code_point];
    const Range* end = std::end(kRanges);
    const Range* range =
        std::lower_bound(std::begin(kRanges), end, code_point, [](const Range& r, uint32_t c) {
          return r.last < c;
        });
    return range != end && range->first <= code_point ? range->char_class : 0;
  }

 private:
  struct Range {
    uint32_t first, last;
    uint8_t char_class;
  };
  static constexpr Range kRanges[] = {
#include "text/unicode.inc"
  };
  static constexpr uint32_t kBmpEnd = 0x10000;

  // One byte per code point of the basic plane (64 KiB, filled in some 20 us); the rare others are
  // searched for.
  UnicodeClasses() : bmp_(kBmpEnd, 0) {
    for (const Range& r : kRanges) {
      for (uint32_t c = r.first; c <= r.last && c < kBmpEnd; ++c) bmp_[c] = r.char_class;
    }
    bmp_['\r'] |= kNewline;
    bmp_['\n'] |= kNewline;
    for (uint32_t c = 0x4E00; c <= 0x9FA5; ++c) bmp_[c] |= kCjk;
    for (uint32_t c = 0x3040; c <= 0x30FF; ++c) bmp_[c] |= kCjk;
  }

  std::vector<uint8_t> bmp_;
};

}  // namespace grebe
