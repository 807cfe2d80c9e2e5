// Byte-level BPE with the pre-tokenizer of DeepSeek V4 (`joyai-llm`), special tokens and incremental decoding.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace grebe {

class GgufFile;

enum class TokenType : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

class Tokenizer {
 public:
  struct Spec {
    std::vector<std::string> tokens;   ///< byte-level alphabet for ordinary tokens, literal text for special ones
    std::vector<TokenType> types;      ///< same length
    std::vector<std::pair<std::string, std::string>> merges;  ///< by rank
    int32_t bos = 0, eos = 1;
  };
  /// Throws FormatError (hostile arrays) or UnsupportedModel (another tokenizer model or pre-tokenizer).
  static std::shared_ptr<const Tokenizer> from_gguf(const GgufFile& file);
  static std::shared_ptr<const Tokenizer> from_spec(Spec spec);

  int32_t vocab_size() const;
  int32_t bos() const;
  int32_t eos() const;

  /// Token ids of valid or invalid UTF-8. Special strings become special ids only with allow_special; as content they are
  /// ordinary text. Never adds bos or eos. Thread-safe.
  std::vector<int32_t> encode(std::string_view text, bool allow_special) const;
  /// Bytes of the tokens, possibly not valid UTF-8 at the ends. Throws InvalidArgument for an id out of range.
  std::string decode(std::span<const int32_t> ids) const;
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  /// Id of a special or ordinary token by its exact text, -1 when there is none.
  int32_t find(std::string_view text) const;

  ~Tokenizer();

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace grebe
