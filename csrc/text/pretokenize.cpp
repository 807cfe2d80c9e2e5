// The reference is a sequence of three "isolated" splits [DeepSeek tokenizer.json]:
//
//   1. \p{N}{1,3}
//   2. [一-龥 U+3040-U+309F U+30A0-U+30FF]+
//   3. [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+      ASCII punctuation takes the ASCII
//   letters after it
//      |[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+                 a word, with one other character in
//      front (mostly a space) | ?[\p{P}\p{S}]+[\r\n]*                               punctuation,
//      with a space in front and line ends behind
//      |\s*[\r\n]+                                           white space up to its last line end
//      |\s+(?!\S)                                            white space, less the last one when
//      something follows
//      |\s+
//
// Splits 1 and 2 cut the text into segments of digits, of CJK and of the rest (the classes are
// disjoint). A digit segment passes split 3 whole; the others are searched by it one by one, so a
// segment's end is the end of text to its lookahead. What no alternative matches (control, format
// and unassigned characters) forms a piece up to the next match.

#include "text/pretokenize.h"

#include "text/utf8.h"

namespace grebe {
namespace {

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool is_ascii_punct(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
         (c >= '{' && c <= '~');
}

}  // namespace

inline PieceScanner::Char PieceScanner::any_char(size_t i) const {
  if (i >= text_.size()) return {0, 0};
  const auto byte = static_cast<uint8_t>(text_[i]);
  if (byte < 0x80) return {classes_.of(byte), 1};
  const Utf8Char c = decode_utf8(text_, i);
  if (!c.valid) return {0, 1};
  return {classes_.of(c.code_point), c.length};
}

inline PieceScanner::Char PieceScanner::segment_char(size_t i) const {
  const Char c = any_char(i);
  const bool inside =
      cjk_segment_ ? (c.char_class & kCjk) != 0 : (c.char_class & (kNumber | kCjk)) == 0;
  return inside ? c : Char{0, 0};
}

inline size_t PieceScanner::skip(size_t i, uint8_t class_mask) const {
  for (Char c = segment_char(i); c.char_class & class_mask; c = segment_char(i)) i += c.length;
  return i;
}

// End of the match of split 3 that begins at i; i when there is none. Only runs that end up in the
// match are longer than one character of lookahead, except white space, of which at most one
// character is left behind: linear time.
size_t PieceScanner::match(size_t i) const {
  const Char c = segment_char(i);
  if (c.length == 0) return i;

  if (is_ascii_punct(text_[i])) {
    size_t end = i + 1;
    while (end < text_.size() && is_ascii_letter(text_[end])) ++end;
    if (end > i + 1) return end;
  }

  constexpr uint8_t kWord = kLetter | kMark;
  if (c.char_class & kWord) return skip(i + c.length, kWord);
  if (!(c.char_class & (kNewline | kPunct | kSymbol))) {
    const Char next = segment_char(i + c.length);
    if (next.char_class & kWord) return skip(i + c.length + next.length, kWord);
  }

  const size_t after_space = text_[i] == ' ' ? i + 1 : i;
  const size_t after_punct = skip(after_space, kPunct | kSymbol);
  if (after_punct > after_space) return skip(after_punct, kNewline);

  if (!(c.char_class & kSpace)) return i;
  size_t end = i, last = i,
         after_newline = i;  // of the run, its last character, behind its last line end
  Char space = c;
  for (; space.char_class & kSpace; space = segment_char(end)) {
    last = end;
    end += space.length;
    if (space.char_class & kNewline) after_newline = end;
  }
  if (after_newline > i) return after_newline;
  return space.length == 0 || last == i ? end : last;
}

bool PieceScanner::next(std::string_view& piece) {
  const size_t begin = pos_;
  const Char first = any_char(begin);
  if (first.length == 0) return false;
  size_t end = begin;
  if (first.char_class & kNumber) {
    Char c = first;
    for (int i = 0; i < 3 && (c.char_class & kNumber); ++i, c = any_char(end)) end += c.length;
  } else {
    cjk_segment_ = (first.char_class & kCjk) != 0;
    end = match(begin);
    if (end == begin) {
      // No match here: everything up to the next match or the segment's end.
      for (Char c = first; c.length != 0 && match(end) == end; c = segment_char(end))
        end += c.length;
    }
  }
  pos_ = end;
  piece = text_.substr(begin, end - begin);
  return true;
}

}  // namespace grebe
