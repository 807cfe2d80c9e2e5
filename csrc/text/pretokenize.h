// The `joyai-llm` pre-tokenizer: cuts text into the pieces inside which BPE merges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "text/unicode.h"

namespace grebe {

/// Iterates over the pieces of a text; joined they are the text. A hand-written scanner equal to
/// the three regex splits of the model's tokenizer.json (quoted in pretokenize.cpp) for all input,
/// in linear time. A byte that is no valid UTF-8 counts as a character without a class. The text
/// must outlive the scanner.
class PieceScanner {
 public:
  explicit PieceScanner(std::string_view text) : text_(text), classes_(UnicodeClasses::get()) {}

  /// The next piece; false at the end.
  bool next(std::string_view& piece);

 private:
  struct Char {
    uint8_t char_class;
    uint8_t length;  // 0: end of the text or of the segment
  };
  Char any_char(size_t i) const;
  Char segment_char(size_t i) const;
  size_t skip(size_t i, uint8_t class_mask) const;
  size_t match(size_t i) const;

  std::string_view text_;
  const UnicodeClasses& classes_;
  size_t pos_ = 0;
  bool cjk_segment_ = false;
};

}  // namespace grebe
