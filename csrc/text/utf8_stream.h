// Incremental decoding of token bytes to text that is always valid UTF-8.
#pragma once

#include <string>
#include <string_view>

#include "text/utf8.h"

namespace grebe {

/// Feeds bytes, returns text. A character cut by the end of a token is held back until the rest
/// arrives; bytes that cannot become a character turn into U+FFFD, as in Python's errors="replace".
/// The concatenation of all results does not depend on how the bytes were divided. Not thread-safe.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes) { return decode(bytes, /*last=*/false); }

  /// What was held back, as U+FFFD. The stream is empty afterwards and can be used again.
  std::string finish() { return decode({}, /*last=*/true); }

  /// Bytes that wait for more.
  std::string_view pending() const { return pending_; }

 private:
  std::string decode(std::string_view bytes, bool last) {
    pending_.append(bytes);
    std::string text;
    text.reserve(pending_.size());
    size_t i = 0;
    while (i < pending_.size()) {
      const Utf8Char c = decode_utf8(pending_, i);
      if (c.truncated && !last) break;
      if (c.valid) {
        text.append(pending_, i, c.length);
      } else {
        text.append("\xEF\xBF\xBD");
      }
      i += c.length;
    }
    pending_.erase(0, i);
    return text;
  }

  std::string pending_;  // outside of calls: at most 3 bytes
};

}  // namespace grebe
