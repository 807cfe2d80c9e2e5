// grebe._engine.Session: tokens in, state and logits out. The token loop is in
// python/grebe/generate.py.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "io/storage.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

int64_t resume(BoundSession& self, nb::object tokens, const std::vector<int64_t>& marks) {
  const std::vector<int32_t> ids = to_tokens(tokens, self.vocab_size());
  const Use use(self, true);
  const WithoutGil release;
  return self.engine->resume(ids, marks);
}

int64_t prefill(
    BoundSession& self,
    nb::object tokens,
    nb::object on_progress,
    nb::object between_layers,
    const std::vector<int64_t>& marks) {
  const std::vector<int32_t> ids = to_tokens(tokens, self.vocab_size());
  const Use use(self, true);
  return compute(
      on_progress,
      [&](const Progress& progress) { return self.engine->prefill(ids, progress, marks); },
      between_layers);
}

// A generation gives the number of changes that it knows of: one that it does not would make it go
// on from another text.
void decode(BoundSession& self, nb::object token, std::optional<uint64_t> changes) {
  const int32_t id = to_token(token, self.vocab_size());
  if (changes && self.user == 0 && *changes != self.changes) {
    throw InvalidArgument(
        "the session was moved by another call during a generation; it is at position " +
        std::to_string(self.engine->pos()));
  }
  const Use use(self, true);
  const WithoutGil release;
  self.engine->decode(id);
}

auto evaluate(BoundSession& self, nb::object tokens, nb::object on_progress) {
  const std::vector<int32_t> ids = to_tokens(tokens, self.vocab_size());
  const Use use(self, true);
  std::vector<float> logits = compute(
      on_progress, [&](const Progress& progress) { return self.engine->evaluate(ids, progress); });
  return to_numpy(std::move(logits), ids.size(), self.vocab_size());
}

int64_t rewind(BoundSession& self, int64_t pos, nb::object on_progress) {
  const Use use(self, true);
  return compute(
      on_progress, [&](const Progress& progress) { return self.engine->rewind(pos, progress); });
}

// An object, since a property's array would be taken for a view into the session.
nb::object logits(const BoundSession& self) {
  const Session& session = self.look();
  if (!session.has_logits() && session.pos() > 0) {
    throw InvalidArgument(
        "the session has no logits: the call that computed its last tokens was cancelled; prefill "
        "them again");
  }
  const std::span<const float> row = session.logits();
  const size_t n = row.size();
  return nb::cast(to_numpy(std::vector<float>(row.begin(), row.end()), n));
}

std::vector<int32_t> tokens(const BoundSession& self) {
  const std::span<const int32_t> ids = self.look().tokens();
  return {ids.begin(), ids.end()};
}

BoundSession fork(BoundSession& self) {
  const Use use(self);
  const WithoutGil release;
  return {self.engine->fork()};
}

// Rows that a disk has lost are computed again; where that fails, the session covers less.
template <class F>
void write_out(BoundSession& self, F&& f) {
  const Use use(self);
  const int64_t pos = self.engine->pos();
  try {
    const WithoutGil release;
    f();
  } catch (...) {
    self.changes += self.engine->pos() != pos;
    throw;
  }
}

nb::bytes snapshot(BoundSession& self) {
  std::vector<uint8_t> bytes;
  write_out(self, [&] { bytes = self.engine->snapshot(); });
  return nb::bytes(bytes.data(), bytes.size());
}

void save(BoundSession& self, nb::object path_object, std::shared_ptr<Storage> storage) {
  const std::string path = to_path(path_object);
  write_out(self, [&] { self.engine->save(path, storage); });
}

}  // namespace

void bind_session(nb::module_& m) {
  m.def(
      "to_tokens",
      [](nb::object tokens, int32_t vocab_size) { return to_tokens(tokens, vocab_size); },
      "tokens"_a.none(),
      "vocab_size"_a,
      nb::sig("def to_tokens(tokens: typing.Any, vocab_size: int) -> list[int]"),
      "Token ids as a list, checked; what every call does with its tokens.");
  nb::class_<BoundSession>(
      m, "Session", "One sequence of tokens and its state; wrapped by grebe.Session.")
      .def(
          "prefill",
          &prefill,
          "tokens"_a.none(),
          "on_progress"_a = nb::none(),
          "between_layers"_a = nb::none(),
          "marks"_a = std::vector<int64_t>(),
          nb::sig(
              "def prefill(self, tokens: typing.Any, "
              "on_progress: collections.abc.Callable[[int, int], object] | None = None, "
              "between_layers: collections.abc.Callable[[], object] | None = None, "
              "marks: collections.abc.Sequence[int] = []) -> int"),
          "Makes the state cover exactly tokens; returns how many were computed.")
      .def(
          "resume",
          &resume,
          "tokens"_a.none(),
          "marks"_a = std::vector<int64_t>(),
          nb::sig(
              "def resume(self, tokens: typing.Any, "
              "marks: collections.abc.Sequence[int] = []) -> int"),
          "Goes to the longest prefix of tokens that needs no computing; returns its length.")
      .def(
          "decode",
          &decode,
          "token"_a.none(),
          "changes"_a = nb::none(),
          nb::sig("def decode(self, token: typing.Any, changes: int | None = None) -> None"),
          "Appends one token; not when changes is given and differs.")
      .def(
          "evaluate",
          &evaluate,
          "tokens"_a.none(),
          "on_progress"_a = nb::none(),
          nb::sig(
              "def evaluate(self, tokens: typing.Any, "
              "on_progress: collections.abc.Callable[[int, int], object] | None = None) -> "
              "numpy.typing.NDArray[numpy.float32]"),
          "Appends tokens; f32[n, vocab_size], row i for the position after tokens[i].")
      .def(
          "rewind",
          &rewind,
          "pos"_a,
          "on_progress"_a = nb::none(),
          nb::sig(
              "def rewind(self, pos: int, "
              "on_progress: collections.abc.Callable[[int, int], object] | None = None) -> int"),
          "Goes back to pos tokens; returns the number of tokens replayed.")
      .def(
          "end_turn",
          [](BoundSession& self) {
            const Use use(self);
            const WithoutGil release;
            self.engine->end_turn();
          },
          "Tells the cache that a turn is complete.")
      .def("fork", &fork, "A copy that shares all history.")
      .def("snapshot", &snapshot, "Everything needed to go on in another process.")
      .def(
          "save",
          &save,
          "path"_a,
          "storage"_a.none() = nb::none(),
          nb::sig(
              "def save(self, path: str | os.PathLike[str], storage: Storage | None = None) -> "
              "None"),
          "The bytes of snapshot() into a file. storage: for tests.")
      .def_prop_ro(
          "logits",
          &logits,
          nb::sig("def logits(self) -> numpy.typing.NDArray[numpy.float32]"),
          "f32[vocab_size] for the next token, a copy.")
      .def_prop_ro(
          "changes",
          [](const BoundSession& self) { return self.changes; },
          "Number of calls so far that may have changed the state.")
      .def_prop_ro("has_logits", [](const BoundSession& self) { return self.look().has_logits(); })
      .def_prop_ro("tokens", &tokens, "The tokens that the state covers.")
      .def_prop_ro(
          "pos",
          [](const BoundSession& self) { return self.look().pos(); },
          "Number of tokens that the state covers.")
      .def_prop_ro("n_ctx", [](const BoundSession& self) { return self.engine->n_ctx(); })
      .def_prop_ro(
          "n_bytes",
          [](const BoundSession& self) { return self.look().n_bytes(); },
          "Bytes of KV state; blocks shared with forks count in each.")
      .def_prop_ro(
          "checkpoint_bytes",
          [](const BoundSession& self) { return self.look().checkpoint_bytes(); },
          "Bytes that rewind checkpoints hold beside n_bytes.");
}

}  // namespace grebe::bind
