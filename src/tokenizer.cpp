// Tokenizer and TextStream.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace grebe {
namespace {

namespace nb = nanobind;
using TokenizerPtr = std::shared_ptr<const Tokenizer>;

nb::bytes to_bytes(std::string_view bytes) { return nb::bytes(bytes.data(), bytes.size()); }

// str as UTF-8, bytes as they are. A str can hold halves of surrogate pairs (JSON allows "\ud83d"):
// pairs are joined, and half of one becomes U+FFFD, because it has no UTF-8 and a request must not
// fail for it.
std::string to_text(nb::handle text) {
  if (PyBytes_Check(text.ptr()))
    return {PyBytes_AS_STRING(text.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(text.ptr()))};
  if (PyByteArray_Check(text.ptr()))
    return {
        PyByteArray_AS_STRING(text.ptr()), static_cast<size_t>(PyByteArray_GET_SIZE(text.ptr()))};
  if (!PyUnicode_Check(text.ptr())) {
    throw InvalidArgument(
        std::string("text is of type ") + nb::type_name(text.type()).c_str() +
        "; expected str, bytes or bytearray");
  }
  Py_ssize_t size = 0;
  if (const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size))
    return {data, static_cast<size_t>(size)};
  PyErr_Clear();
  return nb::cast<std::string>(
      text.attr("encode")("utf-16", "surrogatepass").attr("decode")("utf-16", "replace"));
}

std::string to_token_text(nb::handle text, const char* what) {
  if (!PyBytes_Check(text.ptr()) && !PyUnicode_Check(text.ptr())) {
    throw InvalidArgument(
        std::string(what) + " holds a " + nb::type_name(text.type()).c_str() +
        "; expected str or bytes");
  }
  return to_text(text);
}

TokenizerPtr from_spec(
    nb::sequence tokens,
    const std::vector<int64_t>& types,
    nb::sequence merges,
    int32_t bos,
    int32_t eos) {
  Tokenizer::Spec spec;
  for (nb::handle token : tokens) spec.tokens.push_back(to_token_text(token, "tokens"));
  for (int64_t type : types)
    spec.types.push_back(static_cast<TokenType>(type < 1 || type > 6 ? 0 : type));
  for (nb::handle merge : merges) {
    if (nb::len(merge) != 2) throw InvalidArgument("merges holds something else than pairs");
    spec.merges.emplace_back(to_token_text(merge[0], "merges"), to_token_text(merge[1], "merges"));
  }
  spec.bos = bos;
  spec.eos = eos;
  const bind::WithoutGil release;
  return Tokenizer::from_spec(std::move(spec));
}

}  // namespace
}  // namespace grebe

void bind_tokenizer(nanobind::module_& m) {
  using namespace grebe;
  using namespace nanobind::literals;
  // Bound as Tokenizer; the engine hands out pointers to const, and nanobind keeps no const.
  nb::class_<Tokenizer>(
      m,
      "Tokenizer",
      "Byte-level BPE of DeepSeek V4: text to token ids and back. Immutable and thread-safe.\n\n"
      "A model brings its own (``model.tokenizer``); ``from_file`` reads a Hugging Face "
      "tokenizer.json.")
      .def_static(
          "from_spec",
          &from_spec,
          "tokens"_a,
          "types"_a,
          "merges"_a,
          "bos"_a = 0,
          "eos"_a = 1,
          "Build from the arrays of a GGUF file.\n\n"
          "Args:\n"
          "    tokens: by id; ordinary ones in the byte-level alphabet, special ones as their "
          "literal text.\n"
          "    types: by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.\n"
          "    merges: (left, right) in the order of their rank.\n"
          "    bos: id of the token that begins a text.\n"
          "    eos: id of the token that ends one.\n\n"
          "Raises:\n"
          "    FormatError: the arrays contradict each other.")
      .def_static(
          "from_file",
          [](nb::object path) {
            return nb::module_::import_("grebe._tokenizer_json").attr("load")(path);
          },
          "path"_a,
          nb::sig("def from_file(path: str | os.PathLike[str]) -> Tokenizer"),
          "Read a Hugging Face ``tokenizer.json`` with DeepSeek V4's pre-tokenizer.\n\n"
          "Raises:\n"
          "    StorageError: the file cannot be read.\n"
          "    FormatError: it is not a tokenizer.json, or its parts contradict each other.\n"
          "    UnsupportedModelError: it describes another kind of tokenizer.")
      .def(
          "encode",
          [](const Tokenizer& self, nb::object text, bool allow_special) {
            const std::string utf8 = to_text(text);
            const bind::WithoutGil release;
            return self.encode(utf8, allow_special);
          },
          "text"_a.none(),
          "allow_special"_a = false,
          nb::sig(
              "def encode(self, text: str | bytes | bytearray, allow_special: bool = False) -> "
              "list[int]"),
          "Token ids of a text; never adds bos or eos.\n\n"
          "Args:\n"
          "    text: str, or bytes that need not be valid UTF-8. Half of a surrogate pair counts "
          "as U+FFFD.\n"
          "    allow_special: whether the text of a special token stands for that token. Leave it "
          "off for anything that\n"
          "        a user or a tool wrote: there it is ordinary text.")
      .def(
          "decode",
          [](const Tokenizer& self, nb::object ids) {
            const std::vector<int32_t> tokens = bind::to_tokens(ids, self.vocab_size());
            const bind::WithoutGil release;
            return self.decode_text(tokens);
          },
          "ids"_a.none(),
          nb::sig(
              "def decode(self, ids: collections.abc.Sequence[int] | "
              "numpy.typing.NDArray[numpy.integer[typing.Any]]) -> str"),
          "Text of the tokens, special ones included; bytes that are not UTF-8 become U+FFFD.")
      .def(
          "decode_bytes",
          [](const Tokenizer& self, nb::object ids) {
            return to_bytes(self.decode(bind::to_tokens(ids, self.vocab_size())));
          },
          "ids"_a.none(),
          nb::sig(
              "def decode_bytes(self, ids: collections.abc.Sequence[int] | "
              "numpy.typing.NDArray[numpy.integer[typing.Any]]) -> bytes"),
          "Bytes of the tokens, exactly.")
      .def(
          "token_bytes",
          [](const Tokenizer& self, int32_t id) { return to_bytes(self.token_bytes(id)); },
          "id"_a,
          "Bytes of one token; a special token's literal text.")
      .def(
          "find",
          [](const Tokenizer& self, nb::object text) -> std::optional<int32_t> {
            const int32_t id = self.find(to_text(text));
            return id < 0 ? std::nullopt : std::optional(id);
          },
          "text"_a,
          nb::sig("def find(self, text: str | bytes) -> int | None"),
          "Id of the token whose text is exactly this (special tokens first), None when there is "
          "none.")
      .def(
          "is_special",
          &Tokenizer::is_special,
          "id"_a,
          "Whether the token is control, user defined or unused.")
      .def(
          "stream",
          [](TokenizerPtr self) { return TextStream(std::move(self)); },
          "A new decoder for a text that arrives token by token.")
      .def_prop_ro("vocab_size", &Tokenizer::vocab_size, "Number of tokens.")
      .def_prop_ro("bos", &Tokenizer::bos, "Id of the token that begins a text.")
      .def_prop_ro("eos", &Tokenizer::eos, "Id of the token that ends a text.")
      .def("__len__", &Tokenizer::vocab_size)
      .def("__repr__", [](const Tokenizer& self) {
        return "Tokenizer(vocab_size=" + std::to_string(self.vocab_size()) + ")";
      });

  nb::class_<TextStream>(
      m,
      "TextStream",
      "Decodes tokens one by one to text that is valid at every step: a character cut by a token's "
      "end waits for the rest.")
      .def(
          "push",
          &TextStream::push,
          "id"_a,
          "Text that became complete with this token, possibly empty.")
      .def(
          "finish",
          &TextStream::finish,
          "What was held back, as U+FFFD. The stream can be used again.");
}
