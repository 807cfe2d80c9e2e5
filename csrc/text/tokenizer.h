// Byte-level BPE with the pre-tokenizer of DeepSeek V4 (`joyai-llm`), special tokens and
// incremental decoding.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/utf8_stream.h"

namespace grebe {

class GgufFile;

enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

class Tokenizer {
 public:
  struct Spec {
    /// Byte-level alphabet for ordinary tokens, literal text for special ones.
    std::vector<std::string> tokens;
    std::vector<TokenType> types;                             ///< same length
    std::vector<std::pair<std::string, std::string>> merges;  ///< by rank
    int32_t bos = 0, eos = 1;
  };
  /// Reads tokenizer.ggml.{tokens, token_type, merges}, all required, and {bos, eos}_token_id, 0
  /// and 1 when absent. Throws FormatError (hostile arrays; merges of unknown tokens, as in the
  /// reference) or UnsupportedModel (another tokenizer model or pre-tokenizer; a file without
  /// tokenizer.ggml.pre is taken to have the right one).
  static std::shared_ptr<const Tokenizer> from_gguf(const GgufFile& file);
  /// The same from plain arrays. Throws FormatError.
  static std::shared_ptr<const Tokenizer> from_spec(Spec spec);

  int32_t vocab_size() const;
  int32_t bos() const;
  int32_t eos() const;

  /// Token ids of valid or invalid UTF-8 (a bad byte is a symbol of its own). With allow_special
  /// the texts of control, user defined and unused tokens become their ids, the leftmost first and
  /// of those the longest; without it they are ordinary text. Never adds bos or eos. Thread-safe.
  /// Throws InvalidArgument for a byte that the vocabulary has no token for.
  std::vector<int32_t> encode(std::string_view text, bool allow_special) const;
  /// Bytes of the tokens, possibly not valid UTF-8 at the ends. Throws InvalidArgument for an id
  /// out of range.
  std::string decode(std::span<const int32_t> ids) const;
  /// The same with what is not UTF-8 replaced by U+FFFD.
  std::string decode_text(std::span<const int32_t> ids) const;
  std::string_view token_bytes(int32_t id) const;
  /// Control, user defined or unused.
  bool is_special(int32_t id) const;
  /// Id of the token with exactly these bytes (" the", not "Ġthe"): a special one, else the
  /// ordinary one; -1 for none.
  int32_t find(std::string_view text) const;

  ~Tokenizer();

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Decodes tokens one by one to text that is valid UTF-8 at every step. Not thread-safe.
class TextStream {
 public:
  explicit TextStream(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}
  /// Text that became complete with this token. Throws InvalidArgument for an id out of range; the
  /// stream is unchanged.
  std::string push(int32_t id) { return stream_.push(tokenizer_->token_bytes(id)); }
  /// What was held back, as U+FFFD.
  std::string finish() { return stream_.finish(); }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  Utf8Stream stream_;
};

}  // namespace grebe
