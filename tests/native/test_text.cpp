// UTF-8, the pre-tokenizer, BPE and the reading of hostile tokenizer arrays, below the Python
// layer.
//
// Usage: test_text [folder for a scratch file]   Prints one line per failure; exit status 1 if any.
// Equality with the reference tokenizer on random text is tests/unit/test_tokenizer_oracle.py; here
// are the cases worth naming.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/gguf.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"

namespace grebe {
namespace {

using Strings = std::vector<std::string>;
using Ids = std::vector<int32_t>;

int n_failed = 0, n_checked = 0;

void check(bool ok, const std::string& what) {
  n_checked++;
  if (ok) return;
  n_failed++;
  std::printf("FAILED %s\n", what.c_str());
}

template <class E>
void check_throws(
    const std::function<void()>& f, const std::string& part, const std::string& what) {
  try {
    f();
    check(false, what + ": nothing thrown");
  } catch (const E& e) {
    check(std::string(e.what()).find(part) != std::string::npos, what + ": message is " + e.what());
  } catch (const std::exception& e) {
    check(false, what + ": another class, " + e.what());
  }
}

// --- UTF-8

std::string replaced(std::string_view bytes, size_t cut) {
  Utf8Stream stream;
  std::string text = stream.push(bytes.substr(0, cut));
  text += stream.push(bytes.substr(cut));
  return text += stream.finish();
}

void test_utf8() {
  const std::string r = "\xEF\xBF\xBD";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", ""},
      {"a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80", "a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80"},
      {"\x80", r},
      {"\xC0\x80", r + r},                  // overlong
      {"\xE0\x80\x80", r + r + r},          // overlong
      {"\xED\xA0\x80", r + r + r},          // surrogate
      {"\xF4\x90\x80\x80", r + r + r + r},  // past U+10FFFF
      {"\xE4\xB8", r},                      // cut: one unit
      {"\xE4\xB8x", r + "x"},
      {"\xF0\x9F\x98", r},
      {"\xF0\x9F\x98\xE4\xB8\xAD", r + "\xE4\xB8\xAD"},
      {"\xF0\x9F\xC3\xA9", r + "\xC3\xA9"},
      {"\xFF\xFE", r + r},
  };
  for (const auto& [bytes, text] : cases) {
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      check(replaced(bytes, cut) == text, "utf8 '" + text + "' cut at " + std::to_string(cut));
    }
  }
  Utf8Stream stream;
  check(stream.push("\xE4").empty() && stream.push("\xB8").empty(), "utf8 stream: holds back");
  check(stream.push("\xAD!") == "\xE4\xB8\xAD!" && stream.pending().empty(), "utf8 stream: gives");
}

// --- pieces

Strings pieces(std::string_view text) {
  Strings out;
  PieceScanner scanner(text);
  for (std::string_view piece; scanner.next(piece);) out.emplace_back(piece);
  return out;
}

void test_pieces() {
  const std::vector<Strings> cases = {
      {},
      {"Hello", ",", " world", "!"},
      {"a", "  ", " b"},  // the last space belongs to the word
      {"a", " \n", "b"},
      {"x", "  \n \n", "  ", " y"},        // up to the last line end
      {"end", "   "},                      // nothing follows: whole run
      {"don", "'t"},                       // ASCII punctuation takes ASCII letters
      {"=foo", "(", "\xC3\xA9t\xC3\xA9"},  // but no others
      {"123", "456", "7"},
      {"1", "a"},
      {"...\n\n", "next"},  // punctuation takes the line ends behind
      {" ...", " ", "1"},
      {"\xE4\xB8\xAD\xE6\x96\x87", "abc"},  // CJK apart
      {"\xE3\x82\xA2",
       "\xE3\x83\xBB",
       "\xE3\x82\xA4"},  // katakana middle dot is punctuation inside the run
      {"\xE4\xB8\xAD", "\xEF\xBC\x8C", "\xE6\x96\x87"},
      {std::string(3, '\0'),
       "\x01"
       "a"},  // characters without a class, the last as the word's prefix
      {"\xC2\xA0"
       "a"},                       // NBSP as prefix
      {"\t\t", "1", "\t", "\tb"},  // a digit is a segment: white space before it is whole
      {"\xFF\xFE",
       "\xFF"
       "a"},  // bytes that are no UTF-8
  };
  for (const Strings& want : cases) {
    std::string text;
    for (const std::string& piece : want) text += piece;
    const Strings got = pieces(text);
    std::string shown;
    for (const std::string& piece : got) shown += "[" + piece + "]";
    check(got == want, "pieces of '" + text + "': " + shown);
  }
}

// --- tokenizer

std::string alphabet_char(int byte) {
  const bool printable =
      (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
  int c = byte;
  if (!printable) c = byte <= 0x20 ? 0x100 + byte : byte <= 0xA0 ? 0x121 + byte - 0x7F : 0x143;
  if (c < 0x80) return {static_cast<char>(c)};
  return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
}

// Ids: 0..255 the bytes, then the results of the merges, then special ones.
Tokenizer::Spec small_spec() {
  Tokenizer::Spec spec;
  for (int b = 0; b < 256; ++b) spec.tokens.push_back(alphabet_char(b));
  const std::string space = alphabet_char(' ');
  for (const auto& [left, right] :
       {std::pair<std::string, std::string>{"h", "e"},
        {"l", "l"},
        {"he", "ll"},
        {"hell", "o"},
        {space, "a"},
        {"a", "a"}}) {
    spec.merges.emplace_back(left, right);
    spec.tokens.push_back(left + right);
  }
  spec.types.assign(spec.tokens.size(), TokenType::kNormal);
  for (const char* text : {"<s>", "</s>", "<s><t>", "<think>"}) {
    spec.tokens.push_back(text);
    spec.types.push_back(
        text == std::string("<think>") ? TokenType::kUserDefined : TokenType::kControl);
  }
  spec.bos = 262;
  spec.eos = 263;
  return spec;
}

void test_tokenizer() {
  const auto t = Tokenizer::from_spec(small_spec());
  check(t->vocab_size() == 266 && t->bos() == 262 && t->eos() == 263, "sizes");
  check(t->encode("hello", false) == Ids{259}, "merges by rank");
  check(t->encode("hellhello", false) == Ids{258, 259}, "word of two");
  check(t->encode("aaa", false) == Ids{261, 'a'}, "leftmost first");
  check(t->encode("b a", false) == Ids{'b', 260}, "space prefix");
  check(t->encode("\xFF\xFE", false) == Ids{0xFF, 0xFE}, "bad bytes are symbols");
  check(t->encode("<s>", false) == Ids{'<', 's', '>'}, "special text as content");
  check(t->encode("a<s>a", true) == Ids{'a', 262, 'a'}, "special");
  check(t->encode("<s><t><s><s>", true) == Ids{264, 262, 262}, "longest special");
  check(
      t->encode("<<think><think", true) == Ids{'<', 265, '<', 't', 'h', 'i', 'n', 'k'},
      "user defined special");
  check(t->is_special(262) && t->is_special(265) && !t->is_special(0), "is_special");
  check(t->find("hello") == 259 && t->find(" a") == 260 && t->find("<s>") == 262, "find");
  check(
      t->find("zz") == -1 && t->find("") == -1 && t->find(alphabet_char(' ')) == -1,
      "find nothing");
  check(t->token_bytes(260) == " a" && t->token_bytes(264) == "<s><t>", "token_bytes");
  check(t->decode(Ids{262, 259, 260, 0xFF}) == "<s>hello a\xFF", "decode");
  check(t->decode_text(Ids{0xE4, 0xB8, 0xAD, 0xFF}) == "\xE4\xB8\xAD\xEF\xBF\xBD", "decode_text");
  check_throws<InvalidArgument>([&] { t->decode(Ids{266}); }, "expected 0 to 265", "id too large");
  check_throws<InvalidArgument>([&] { t->is_special(-1); }, "id is -1", "negative id");

  // Both merge algorithms, across the boundary between them.
  for (size_t n : {1, 2, 95, 96, 97, 98, 1000, 100000}) {
    Ids want(n / 2, 261);
    if (n % 2) want.push_back('a');
    check(t->encode(std::string(n, 'a'), false) == want, std::to_string(n) + " times a");
    std::string text;
    Ids hellos;
    for (size_t i = 0; i < n; ++i) text += "hello", hellos.push_back(259);
    check(t->encode(text, false) == hellos, std::to_string(n) + " times hello");
  }
}

void test_bad_spec() {
  const auto broken = [](const std::string& part,
                         const std::function<void(Tokenizer::Spec&)>& change) {
    Tokenizer::Spec spec = small_spec();
    change(spec);
    check_throws<FormatError>([&] { Tokenizer::from_spec(spec); }, part, "spec with " + part);
  };
  broken("is empty", [](auto& s) { s.tokens.clear(), s.types.clear(); });
  broken("265 entries", [](auto& s) { s.types.pop_back(); });
  broken("expected 1 to 6", [](auto& s) { s.types[3] = static_cast<TokenType>(7); });
  broken("needs 'zz'", [](auto& s) { s.merges.emplace_back("zz", "a"); });
  broken("needs 'ab'", [](auto& s) { s.merges.emplace_back("a", "b"); });
  broken("needs ''", [](auto& s) { s.merges.emplace_back("", "a"); });
  broken("eos id is 266", [](auto& s) { s.eos = 266; });
  broken("bos id is -1", [](auto& s) { s.bos = -1; });
  Tokenizer::Spec no_byte = small_spec();
  no_byte.tokens['q'] = "qqq";
  const auto t = Tokenizer::from_spec(no_byte);
  check_throws<InvalidArgument>(
      [&] { t->encode("aqa", false); }, "no token for byte 113", "byte without token");
}

// --- GGUF

struct Writer {
  std::string bytes;
  uint64_t n_keys = 0;
  void u32(uint32_t v) { bytes.append(reinterpret_cast<const char*>(&v), 4); }
  void u64(uint64_t v) { bytes.append(reinterpret_cast<const char*>(&v), 8); }
  void text(const std::string& s) { u64(s.size()), bytes += s; }
  void key(const std::string& name, GgufType type) {
    ++n_keys, text("tokenizer.ggml." + name), u32(static_cast<uint32_t>(type));
  }
  void array(const std::string& name, GgufType element, uint64_t n) {
    key(name, GgufType::kArray), u32(static_cast<uint32_t>(element)), u64(n);
  }
  void strings(const std::string& name, const Strings& values) {
    array(name, GgufType::kString, values.size());
    for (const std::string& s : values) text(s);
  }
  void save(const std::string& path) const {
    Writer head;
    head.bytes = "GGUF";
    head.u32(3), head.u64(0), head.u64(n_keys);
    std::ofstream(path, std::ios::binary) << head.bytes << bytes << std::string(64, '\0');
  }
};

void test_gguf(const std::string& folder) {
  const std::string path = folder + "/test_text.gguf";
  struct Options {
    std::string model = "gpt2", pre = "joyai-llm", without = {};
    Strings extra_merges = {};
  };
  const auto load = [&](const Options& o) {
    const Tokenizer::Spec spec = small_spec();
    Writer w;
    if (!o.model.empty()) w.key("model", GgufType::kString), w.text(o.model);
    if (!o.pre.empty()) w.key("pre", GgufType::kString), w.text(o.pre);
    if (o.without != "tokens") w.strings("tokens", spec.tokens);
    if (o.without != "token_type") {
      w.array("token_type", GgufType::kI32, spec.types.size());
      for (TokenType type : spec.types) w.u32(static_cast<uint32_t>(type));
    }
    Strings lines;
    for (const auto& [left, right] : spec.merges) lines.push_back(left + " " + right);
    lines.insert(lines.end(), o.extra_merges.begin(), o.extra_merges.end());
    if (o.without != "merges") w.strings("merges", lines);
    if (o.without != "eos_token_id") w.key("eos_token_id", GgufType::kU32), w.u32(263);
    w.save(path);
    return Tokenizer::from_gguf(*GgufFile::open(path));
  };
  const auto t = load({});
  check(
      t->encode("hello<s>", true) == Ids{259, 262} && t->bos() == 0 && t->eos() == 263,
      "from_gguf");
  check(load({.pre = ""})->vocab_size() == 266, "from_gguf without pre");
  check(load({.without = "eos_token_id"})->eos() == 1, "from_gguf without eos");
  check_throws<UnsupportedModel>(
      [&] { load({.model = "llama"}); }, "'llama'; expected 'gpt2'", "other model");
  check_throws<UnsupportedModel>([&] { load({.model = ""}); }, "'absent'", "no model");
  check_throws<UnsupportedModel>(
      [&] { load({.pre = "deepseek-v3"}); }, "expected 'joyai-llm'", "other pre-tokenizer");
  for (const char* key : {"tokens", "token_type", "merges"}) {
    check_throws<FormatError>(
        [&] { load({.without = key}); },
        std::string(key) + " is missing",
        std::string("no ") + key);
  }
  check_throws<FormatError>(
      [&] { load({.extra_merges = {"ab"}}); }, "merge 6 is 'ab'", "merge without a space");
  check_throws<FormatError>(
      [&] { load({.extra_merges = {"a b c"}}); }, "merge 6 needs 'b c'", "merge with two spaces");
  check_throws<FormatError>(
      [&] { load({.extra_merges = {" a"}}); }, "merge 6 needs ''", "merge with nothing");
  std::remove(path.c_str());
}

}  // namespace
}  // namespace grebe

int main(int argc, char** argv) {
  using namespace grebe;
  test_utf8();
  test_pieces();
  test_tokenizer();
  test_bad_spec();
  test_gguf(argc > 1 ? argv[1] : ".");
  std::printf("%d checks, %d failed\n", n_checked, n_failed);
  return n_failed ? 1 : 0;
}
