// Byte-level BPE over flat tables.
//
// The vocabulary arrays come from a file and are hostile: every length, id and merge is checked
// here, once. Tokens are kept as their bytes, back to back: ordinary ones mapped back from the
// byte-level alphabet (GPT-2's: every byte has a printable character), special ones literally.
// Nothing changes after construction, so all methods are thread-safe.

#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "core/error.h"
#include "io/gguf.h"
#include "text/bpe.h"
#include "text/byte_level.h"
#include "text/pretokenize.h"

namespace grebe {
namespace {

constexpr char kModelKey[] = "tokenizer.ggml.model";
constexpr char kPreKey[] = "tokenizer.ggml.pre";
constexpr char kTokensKey[] = "tokenizer.ggml.tokens";
constexpr char kTypesKey[] = "tokenizer.ggml.token_type";
constexpr char kMergesKey[] = "tokenizer.ggml.merges";

uint64_t hash_bytes(std::string_view s) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
  const char* p = s.data();
  size_t n = s.size();
  uint64_t hash = n * kMultiplier;
  const auto mix = [&](uint64_t word) {
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 32;
  };
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    mix(word);
  }
  uint64_t word = 0;
  for (size_t k = 0; k < n; ++k) word |= static_cast<uint64_t>(static_cast<uint8_t>(p[k])) << 8 * k;
  mix(word);
  return hash;
}

// Pieces seen earlier in the same text, so that a word is merged once per call. Direct mapped; an
// entry refers to the text and to the ids already written, so it owns nothing.
class PieceCache {
 public:
  explicit PieceCache(size_t text_bytes)
      : entries_(std::bit_ceil(std::clamp<size_t>(text_bytes / 16, 16, size_t{1} << 14))) {}

  struct Entry {
    std::string_view piece;
    size_t begin = 0, n_ids = 0;
  };
  Entry& at(std::string_view piece) {
    return entries_[hash_bytes(piece) >> 40 & (entries_.size() - 1)];
  }

 private:
  std::vector<Entry> entries_;
};

// Where complaints about the arrays point to.
struct Source {
  std::string path;
  uint64_t tokens_offset = 0, types_offset = 0, merges_offset = 0, ids_offset = 0;
};

struct Arrays {
  std::vector<std::string_view> tokens;
  std::vector<int64_t> types;
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  int64_t bos, eos;
};

}  // namespace

struct Tokenizer::Impl {
  int32_t n_tokens = 0, bos = 0, eos = 0;
  std::string bytes;              // of all tokens
  std::vector<uint32_t> offsets;  // n_tokens + 1
  std::vector<uint8_t> special;   // bool
  std::vector<int32_t> by_bytes;  // hash table of ordinary tokens, -1 = free
  std::vector<int32_t> specials;  // ids sorted by text
  std::array<bool, 256> special_start{};
  std::array<int32_t, 256> byte_id{};
  std::optional<MergeTable> merges;

  Impl(const Arrays& arrays, const Source& source);

  std::string_view text_of(int32_t id) const {
    return std::string_view(bytes).substr(offsets[id], offsets[id + 1] - offsets[id]);
  }
  void add_tokens(const Arrays& arrays, const Source& source);
  void add_merges(const Arrays& arrays, const Source& source);
  size_t slot_of(std::string_view text) const;
  int32_t find_ordinary(std::string_view text) const { return by_bytes[slot_of(text)]; }
  int32_t find_special(std::string_view text) const;
  int32_t longest_special_at(std::string_view text, size_t pos) const;

  // One call of encode: its output and scratch.
  struct Encoding {
    std::vector<int32_t> out;
    PieceCache cache;
    BpeMerger merger;
    std::vector<int32_t> ids;
  };
  void encode_ordinary(std::string_view text, Encoding& encoding) const;
};

Tokenizer::Impl::Impl(const Arrays& arrays, const Source& source) {
  add_tokens(arrays, source);
  add_merges(arrays, source);
  for (const auto& [name, id] : {std::pair("bos", arrays.bos), std::pair("eos", arrays.eos)}) {
    if (id < 0 || id >= n_tokens) {
      throw FormatError(
          source.path,
          source.ids_offset,
          std::string("tokenizer: ") + name + " id is " + std::to_string(id) +
              "; the vocabulary has " + std::to_string(n_tokens) + " tokens");
    }
  }
  bos = static_cast<int32_t>(arrays.bos);
  eos = static_cast<int32_t>(arrays.eos);
}

void Tokenizer::Impl::add_tokens(const Arrays& arrays, const Source& source) {
  const auto fail = [&](uint64_t offset, const std::string& what) {
    throw FormatError(source.path, offset, "tokenizer: " + what);
  };
  const size_t n = arrays.tokens.size();
  if (n == 0) fail(source.tokens_offset, std::string(kTokensKey) + " is empty");
  if (n > INT32_MAX / 4) {
    fail(source.tokens_offset, std::string(kTokensKey) + " has " + std::to_string(n) + " entries");
  }
  if (arrays.types.size() != n) {
    fail(
        source.types_offset,
        std::string(kTypesKey) + " has " + std::to_string(arrays.types.size()) + " entries; " +
            kTokensKey + " has " + std::to_string(n));
  }
  uint64_t total = 0;
  for (std::string_view token : arrays.tokens) total += token.size();
  if (total > UINT32_MAX) {
    fail(
        source.tokens_offset,
        "the tokens have " + std::to_string(total) + " bytes; at most 2^32 - 1");
  }

  n_tokens = static_cast<int32_t>(n);
  bytes.reserve(total);
  offsets.reserve(n + 1);
  offsets.push_back(0);
  special.resize(n);
  by_bytes.assign(std::bit_ceil(2 * n), -1);
  for (int32_t id = 0; id < n_tokens; ++id) {
    const int64_t type = arrays.types[id];
    if (type < 1 || type > 6) {
      fail(
          source.types_offset,
          std::string(kTypesKey) + " of token " + std::to_string(id) + " is " +
              std::to_string(type) + "; expected 1 to 6");
    }
    const auto token_type = static_cast<TokenType>(type);
    special[id] = token_type == TokenType::kControl || token_type == TokenType::kUserDefined ||
                  token_type == TokenType::kUnused;
    // An ordinary token outside of the alphabet cannot come from text; decoding prints it as it is,
    // like the reference.
    if (special[id] || !append_token_bytes(arrays.tokens[id], bytes))
      bytes.append(arrays.tokens[id]);
    offsets.push_back(static_cast<uint32_t>(bytes.size()));
    if (special[id]) {
      specials.push_back(id);
    } else if (int32_t& slot = by_bytes[slot_of(text_of(id))]; slot < 0) {
      slot = id;  // of equal tokens the lowest id is the one that text gets
    }
  }
  std::stable_sort(specials.begin(), specials.end(), [&](int32_t a, int32_t b) {
    return text_of(a) < text_of(b);
  });
  for (int32_t id : specials) {
    if (!text_of(id).empty()) special_start[static_cast<uint8_t>(text_of(id)[0])] = true;
  }
  for (int b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    byte_id[b] = find_ordinary({&byte, 1});
  }
}

void Tokenizer::Impl::add_merges(const Arrays& arrays, const Source& source) {
  if (arrays.merges.size() > INT32_MAX / 4) {
    throw FormatError(
        source.path,
        source.merges_offset,
        "tokenizer: " + std::to_string(arrays.merges.size()) + " merges");
  }
  merges.emplace(arrays.merges.size());
  std::string both;
  for (size_t rank = 0; rank < arrays.merges.size(); ++rank) {
    const auto& [left, right] = arrays.merges[rank];
    const auto known = [&](std::string_view text, std::string_view shown) {
      const int32_t id = text.empty() ? -1 : find_ordinary(text);
      if (id < 0) {
        throw FormatError(
            source.path,
            source.merges_offset,
            "tokenizer: merge " + std::to_string(rank) + " needs " + quoted(shown) +
                ", which is not among the ordinary tokens");
      }
      return id;
    };
    both.clear();
    if (!append_token_bytes(left, both)) both.append(left);
    const size_t n_left = both.size();
    if (!append_token_bytes(right, both)) both.append(right);
    const std::string_view text = both;
    const int32_t left_id = known(text.substr(0, n_left), left);
    const int32_t right_id = known(text.substr(n_left), right);
    merges->insert(left_id, right_id, static_cast<uint32_t>(rank), known(text, text));
  }
}

size_t Tokenizer::Impl::slot_of(std::string_view text) const {
  const size_t mask = by_bytes.size() - 1;
  size_t i = hash_bytes(text) & mask;
  while (by_bytes[i] >= 0 && text_of(by_bytes[i]) != text) i = (i + 1) & mask;
  return i;
}

int32_t Tokenizer::Impl::find_special(std::string_view text) const {
  const auto it =
      std::lower_bound(specials.begin(), specials.end(), text, [&](int32_t id, std::string_view t) {
        return text_of(id) < t;
      });
  return it != specials.end() && text_of(*it) == text ? *it : -1;
}

// Of the special tokens that text has at pos the longest, -1 for none: narrows the sorted list byte
// by byte.
int32_t Tokenizer::Impl::longest_special_at(std::string_view text, size_t pos) const {
  auto low = specials.begin(), high = specials.end();
  int32_t longest = -1;
  for (size_t k = 0; pos + k < text.size(); ++k) {
    const auto byte = static_cast<uint8_t>(text[pos + k]);
    const auto byte_at = [&](int32_t id) {  // -1 sorts a text that ends here in front
      const std::string_view t = text_of(id);
      return k < t.size() ? static_cast<uint8_t>(t[k]) : -1;
    };
    low = std::partition_point(low, high, [&](int32_t id) { return byte_at(id) < byte; });
    high = std::partition_point(low, high, [&](int32_t id) { return byte_at(id) == byte; });
    if (low == high) break;
    if (text_of(*low).size() == k + 1) longest = *low;
  }
  return longest;
}

void Tokenizer::Impl::encode_ordinary(std::string_view text, Encoding& encoding) const {
  auto& [out, cache, merger, ids] = encoding;
  PieceScanner scanner(text);
  std::string_view piece;
  while (scanner.next(piece)) {
    PieceCache::Entry& entry = cache.at(piece);
    if (entry.piece == piece) {
      const size_t begin = out.size();
      out.resize(begin + entry.n_ids);
      std::copy_n(out.begin() + entry.begin, entry.n_ids, out.begin() + begin);
      continue;
    }
    ids.clear();
    for (char c : piece) {
      const auto byte = static_cast<uint8_t>(c);
      if (byte_id[byte] < 0) {
        throw InvalidArgument(
            "tokenizer: the vocabulary has no token for byte " + std::to_string(byte));
      }
      ids.push_back(byte_id[byte]);
    }
    merger.merge(ids);
    entry = {piece, out.size(), ids.size()};
    out.insert(out.end(), ids.begin(), ids.end());
  }
}

std::shared_ptr<const Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  const auto model = file.get_string(kModelKey);
  if (model != "gpt2") {
    const std::string found = model ? std::string(*model) : "absent";
    throw UnsupportedModel(
        std::string("tokenizer: ") + kModelKey + " is " + quoted(found) +
            "; expected 'gpt2' (byte-level BPE)",
        kModelKey,
        found,
        "gpt2");
  }
  // Files without the key predate it; the architecture has one pre-tokenizer only.
  const auto pre = file.get_string(kPreKey);
  if (pre && *pre != "joyai-llm") {
    throw UnsupportedModel(
        std::string("tokenizer: ") + kPreKey + " is " + quoted(*pre) + "; expected 'joyai-llm'",
        kPreKey,
        std::string(*pre),
        "joyai-llm");
  }
  const auto offset_of = [&](const char* key) {
    const GgufKey* entry = file.find_key(key);
    return entry ? entry->offset : 0;
  };
  const auto required = [&](auto value, const char* key) {
    if (!value) throw FormatError(file.path(), 0, std::string("tokenizer: ") + key + " is missing");
    return *std::move(value);
  };
  Source source{file.path(), offset_of(kTokensKey), offset_of(kTypesKey), offset_of(kMergesKey), 0};
  Arrays arrays;
  arrays.tokens = required(file.get_string_array(kTokensKey), kTokensKey);
  arrays.types = required(file.get_int_array(kTypesKey), kTypesKey);
  const std::vector<std::string_view> lines =
      required(file.get_string_array(kMergesKey), kMergesKey);
  arrays.merges.reserve(lines.size());
  for (std::string_view line : lines) {
    const size_t space =
        line.find(' ');  // the alphabet has no space, so the first one is the only one
    if (space == std::string_view::npos) {
      throw FormatError(
          file.path(),
          source.merges_offset,
          "tokenizer: merge " + std::to_string(arrays.merges.size()) + " is " + quoted(line) +
              "; expected 'left right'");
    }
    arrays.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  arrays.bos = file.get_int("tokenizer.ggml.bos_token_id").value_or(0);
  arrays.eos = file.get_int("tokenizer.ggml.eos_token_id").value_or(1);
  source.ids_offset = offset_of(
      arrays.bos < 0 || arrays.bos >= static_cast<int64_t>(arrays.tokens.size())
          ? "tokenizer.ggml.bos_token_id"
          : "tokenizer.ggml.eos_token_id");
  std::shared_ptr<Tokenizer> tokenizer(new Tokenizer);
  tokenizer->impl_ = std::make_unique<Impl>(arrays, source);
  return tokenizer;
}

std::shared_ptr<const Tokenizer> Tokenizer::from_spec(Spec spec) {
  Arrays arrays;
  arrays.tokens.assign(spec.tokens.begin(), spec.tokens.end());
  for (TokenType type : spec.types) arrays.types.push_back(static_cast<int64_t>(type));
  for (const auto& [left, right] : spec.merges) arrays.merges.emplace_back(left, right);
  arrays.bos = spec.bos;
  arrays.eos = spec.eos;
  std::shared_ptr<Tokenizer> tokenizer(new Tokenizer);
  tokenizer->impl_ = std::make_unique<Impl>(arrays, Source{"tokenizer arrays"});
  return tokenizer;
}

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

int32_t Tokenizer::vocab_size() const { return impl_->n_tokens; }
int32_t Tokenizer::bos() const { return impl_->bos; }
int32_t Tokenizer::eos() const { return impl_->eos; }

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool allow_special) const {
  if (text.size() > INT32_MAX) {
    throw InvalidArgument(
        "tokenizer: text has " + std::to_string(text.size()) + " bytes; at most 2^31 - 1");
  }
  Impl::Encoding encoding{{}, PieceCache(text.size()), BpeMerger(*impl_->merges), {}};
  encoding.out.reserve(text.size() / 4 + 8);
  size_t begin = 0;
  if (allow_special) {
    for (size_t pos = 0; pos < text.size();) {
      const int32_t id = impl_->special_start[static_cast<uint8_t>(text[pos])]
                             ? impl_->longest_special_at(text, pos)
                             : -1;
      if (id < 0) {
        ++pos;
        continue;
      }
      impl_->encode_ordinary(text.substr(begin, pos - begin), encoding);
      encoding.out.push_back(id);
      pos += impl_->text_of(id).size();
      begin = pos;
    }
  }
  impl_->encode_ordinary(text.substr(begin), encoding);
  return std::move(encoding.out);
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text.append(token_bytes(id));
  return text;
}

std::string Tokenizer::decode_text(std::span<const int32_t> ids) const {
  Utf8Stream stream;
  std::string text = stream.push(decode(ids));
  return text += stream.finish();
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= impl_->n_tokens) {
    throw InvalidArgument(
        "tokenizer: token id is " + std::to_string(id) + "; expected 0 to " +
        std::to_string(impl_->n_tokens - 1));
  }
  return impl_->text_of(id);
}

bool Tokenizer::is_special(int32_t id) const { return token_bytes(id), impl_->special[id] != 0; }

int32_t Tokenizer::find(std::string_view text) const {
  const int32_t id = impl_->find_special(text);
  return id >= 0 ? id : impl_->find_ordinary(text);
}

}  // namespace grebe
