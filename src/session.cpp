// grebe._engine.Session: tokens in, state and logits out. The token loop is in python/grebe/generate.py.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

int32_t vocab_size(const Session& session) { return session.model()->config().vocab_size; }

int64_t prefill(Session& session, nb::object tokens, nb::object on_progress) {
  const std::vector<int32_t> ids = to_tokens(tokens, vocab_size(session));
  return compute(on_progress, [&](const Progress& progress) { return session.prefill(ids, progress); });
}

void decode(Session& session, nb::object token) {
  const int32_t id = to_token(token, vocab_size(session));
  nb::gil_scoped_release release;
  session.decode(id);
}

auto evaluate(Session& session, nb::object tokens, nb::object on_progress) {
  const std::vector<int32_t> ids = to_tokens(tokens, vocab_size(session));
  std::vector<float> logits =
      compute(on_progress, [&](const Progress& progress) { return session.evaluate(ids, progress); });
  return to_numpy(std::move(logits), ids.size(), vocab_size(session));
}

// An object, since a property's array would be taken for a view into the session.
nb::object logits(const Session& session) {
  const std::span<const float> row = session.logits();
  const size_t n = row.size();
  return nb::cast(to_numpy(std::vector<float>(row.begin(), row.end()), n));
}

nb::bytes snapshot(const Session& session) {
  std::vector<uint8_t> bytes;
  {
    nb::gil_scoped_release release;
    bytes = session.snapshot();
  }
  return nb::bytes(bytes.data(), bytes.size());
}

}  // namespace

void bind_session(nb::module_& m) {
  m.def(
      "to_tokens", [](nb::object tokens, int32_t vocab_size) { return to_tokens(tokens, vocab_size); }, "tokens"_a,
      "vocab_size"_a, nb::sig("def to_tokens(tokens: typing.Any, vocab_size: int) -> list[int]"),
      "Token ids as a list, checked; what every call does with its tokens.");
  nb::class_<Session>(m, "Session", "One sequence of tokens and its state; wrapped by grebe.Session.")
      .def("prefill", &prefill, "tokens"_a, "on_progress"_a = nb::none(),
           nb::sig("def prefill(self, tokens: typing.Any, "
                   "on_progress: collections.abc.Callable[[int, int], object] | None = None) -> int"),
           "Makes the state cover exactly tokens; returns how many were computed.")
      .def("decode", &decode, "token"_a, nb::sig("def decode(self, token: typing.Any) -> None"), "Appends one token.")
      .def("evaluate", &evaluate, "tokens"_a, "on_progress"_a = nb::none(),
           nb::sig("def evaluate(self, tokens: typing.Any, "
                   "on_progress: collections.abc.Callable[[int, int], object] | None = None) -> "
                   "numpy.typing.NDArray[numpy.float32]"),
           "Appends tokens; f32[n, vocab_size], row i for the position after tokens[i].")
      .def_prop_ro("logits", &logits, nb::sig("def logits(self) -> numpy.typing.NDArray[numpy.float32]"),
                   "f32[vocab_size] for the next token, a copy.")
      .def_prop_ro("has_logits", &Session::has_logits)
      .def_prop_ro(
          "tokens", [](const Session& s) { return std::vector<int32_t>(s.tokens().begin(), s.tokens().end()); },
          "The tokens that the state covers.")
      .def_prop_ro("pos", &Session::pos, "Number of tokens that the state covers.")
      .def_prop_ro("n_ctx", &Session::n_ctx)
      .def_prop_ro("n_bytes", &Session::n_bytes, "Bytes of KV state; blocks shared with forks count in each.")
      .def_prop_ro("checkpoint_bytes", &Session::checkpoint_bytes, "Bytes that rewind checkpoints hold beside n_bytes.")
      .def("fork", &Session::fork, nb::call_guard<nb::gil_scoped_release>(), "A copy that shares all history.")
      .def(
          "rewind",
          [](Session& session, int64_t pos, nb::object on_progress) {
            return compute(on_progress, [&](const Progress& progress) { return session.rewind(pos, progress); });
          },
          "pos"_a, "on_progress"_a = nb::none(),
          nb::sig("def rewind(self, pos: int, "
                  "on_progress: collections.abc.Callable[[int, int], object] | None = None) -> int"),
          "Goes back to pos tokens; returns the number of tokens replayed.")
      .def("snapshot", &snapshot, "Everything needed to go on in another process.");
}

}  // namespace grebe::bind
