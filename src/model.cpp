// grebe._engine.Model: a loaded model.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "io/storage.h"
#include "session/kv_cache.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

std::shared_ptr<Model> load(
    nb::object path_object,
    const std::string& backend,
    int n_threads,
    const std::string& kv_rounding,
    const std::string& kernels,
    const std::string& isa,
    int prefill_chunk,
    const std::string& observe) {
  const std::string path = to_path(path_object);
  const LoadOptions options{backend, n_threads, kv_rounding, kernels, isa, prefill_chunk, observe};
  const WithoutGil release;
  return Model::load(path, options);
}

nb::dict options_dict(const Model& model) {
  const LoadOptions& o = model.options();
  nb::dict d;
  d["backend"] = o.backend;
  d["device"] = model.device();
  d["n_threads"] = o.n_threads;
  d["kv_rounding"] = o.kv_rounding;
  d["kernels"] = o.kernels;
  d["isa"] = o.isa;
  d["prefill_chunk"] = o.prefill_chunk;
  return d;
}

BoundSession restore(
    Model& model,
    nb::object snapshot,
    int64_t n_ctx,
    std::shared_ptr<KvCache> cache,
    std::shared_ptr<Storage> storage) {
  const RestoreOptions options{n_ctx, cache, storage};
  if (!PyObject_CheckBuffer(snapshot.ptr())) {
    const std::string path = to_path(snapshot);
    const WithoutGil release;
    return {model.restore_file(path, options)};
  }
  Py_buffer view;
  if (PyObject_GetBuffer(snapshot.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  struct Release {
    Py_buffer* view;
    ~Release() { PyBuffer_Release(view); }
  } guard{&view};
  const WithoutGil release;
  return {model.restore(
      {static_cast<const uint8_t*>(view.buf), static_cast<size_t>(view.len)}, options)};
}

nb::list take_inputs(Model& model) {
  std::vector<InputStats> all;
  {
    const WithoutGil release;
    all = model.take_inputs();
  }
  nb::list out;
  for (InputStats& s : all) {
    const size_t n = s.counts.size();
    auto sums = to_numpy(std::move(s.sums), n, s.n_in);
    out.append(nb::make_tuple(nb::str(s.name.c_str()), sums, to_numpy(std::move(s.counts), n)));
  }
  return out;
}

nb::list take_hidden(Model& model) {
  std::vector<std::vector<float>> layers;
  {
    const WithoutGil release;
    layers = model.take_hidden();
  }
  const ModelConfig& c = model.config();
  nb::list out;
  for (std::vector<float>& x : layers) {
    const size_t n = x.size() / (static_cast<size_t>(c.hc_mult) * c.hidden_size);
    out.append(to_numpy(std::move(x), n, c.hc_mult, c.hidden_size));
  }
  return out;
}

nb::object step(Model& model, nb::list inputs, const std::string& logits_name) {
  using Logits = StepInput::Logits;
  Logits wanted = Logits::kLast;
  if (logits_name == "none")
    wanted = Logits::kNone;
  else if (logits_name == "all")
    wanted = Logits::kAll;
  else if (logits_name != "last") {
    throw InvalidArgument("logits is '" + logits_name + "'; 'last', 'all' or 'none' is expected");
  }
  const int32_t vocab_size = model.config().vocab_size;
  std::vector<BoundSession*> sessions;  // alive as long as `inputs`
  std::vector<std::vector<int32_t>> tokens;
  for (nb::handle item : inputs) {
    nb::tuple pair = nb::cast<nb::tuple>(item);
    const std::string what = "inputs[" + std::to_string(sessions.size()) + "].tokens";
    sessions.push_back(nb::cast<BoundSession*>(pair[0]));
    tokens.push_back(to_tokens(pair[1], vocab_size, what.c_str()));
  }
  std::vector<StepInput> rows(sessions.size());
  std::vector<Use> uses;
  for (size_t i = 0; i < rows.size(); i++) {
    for (size_t j = 0; j < i; j++) {
      if (sessions[i] == sessions[j]) {
        throw InvalidArgument(
            "inputs[" + std::to_string(j) + "] and inputs[" + std::to_string(i) +
            "] are the same session");
      }
    }
    uses.emplace_back(*sessions[i], true);
    rows[i] = {sessions[i]->engine.get(), tokens[i], wanted};
  }
  std::vector<float> logits;
  compute(nb::none(), [&](const Progress&) { model.step(rows, logits); });
  const size_t n_rows = logits.size() / static_cast<size_t>(vocab_size);
  return nb::cast(to_numpy(std::move(logits), n_rows, vocab_size));
}

}  // namespace

void bind_model(nb::module_& m) {
  nb::class_<Model>(m, "Model", "A loaded model; wrapped by grebe.Model.")
      .def_static(
          "load",
          &load,
          "path"_a,
          nb::kw_only(),
          "backend"_a,
          "n_threads"_a,
          "kv_rounding"_a,
          "kernels"_a,
          "isa"_a,
          "prefill_chunk"_a,
          "observe"_a = "",
          "Maps the file and starts the threads. Releases the GIL.",
          nb::sig(
              "def load(path: str | os.PathLike[str], *, backend: str, n_threads: int, "
              "kv_rounding: str, kernels: str, "
              "isa: str, prefill_chunk: int, observe: str = '') -> Model"))
      .def(
          "config",
          [](const Model& model) { return config_dict(model.config()); },
          nb::sig("def config(self) -> dict[str, typing.Any]"),
          "The fields of grebe.ModelConfig.")
      .def(
          "trace",
          [](const Model& model) {
            const WithoutGil release;
            return model.trace();
          },
          "The dispatches of the last step, a line each: kernel, barrier, bytes that it reads.")
      .def(
          "take_inputs",
          &take_inputs,
          nb::sig(
              "def take_inputs(self) -> list[tuple[str, numpy.typing.NDArray[numpy.float64], "
              "numpy.typing.NDArray[numpy.int64]]]"),
          "Per weight the sums of squares f64[n_matrices, n_in] of what it was multiplied with "
          "since the last call, and how many rows. Of models loaded with observe='inputs'.")
      .def(
          "take_hidden",
          &take_hidden,
          nb::sig("def take_hidden(self) -> list[numpy.typing.NDArray[numpy.float32]]"),
          "Per layer f32[n, n_streams, hidden] of the rows since the last call. Of models loaded "
          "with observe='hidden'.")
      .def(
          "options",
          &options_dict,
          nb::sig("def options(self) -> dict[str, typing.Any]"),
          "The load options as resolved: backend, threads and instruction set filled in.")
      .def(
          "weights",
          [](const Model& model) { return weights_dict(model.weights()); },
          nb::sig("def weights(self) -> dict[str, typing.Any]"),
          "bytes_per_token, total_bytes, expert_bytes, and the names of ignored tensors.")
      .def_prop_ro(
          "fingerprint", [](const Model& model) { return model.fingerprint(); }, "64 hex digits.")
      .def_prop_ro("file_bytes", [](const Model& model) { return model.file().file_bytes(); })
      .def_prop_ro(
          "scratch_bytes",
          &Model::scratch_bytes,
          nb::call_guard<WithoutGil>(),
          "Scratch held by the engine now, without weights and sessions.")
      .def_prop_ro(
          "tokenizer",
          [](const Model& model) { return model.tokenizer(); },
          nb::rv_policy::reference_internal,
          nb::sig("def tokenizer(self) -> Tokenizer | None"),
          "None when the file has no tokenizer.")
      .def(
          "session",
          [](Model& model, int64_t n_ctx, std::shared_ptr<KvCache> cache) {
            const WithoutGil release;
            return BoundSession{model.session(n_ctx, cache)};
          },
          "n_ctx"_a,
          "cache"_a.none() = nb::none(),
          "A new session; n_ctx 0 means the model's maximum.")
      .def(
          "open_cache",
          [](Model& model,
             nb::object path,
             uint64_t budget_bytes,
             uint64_t ram_bytes,
             uint64_t daily_write_bytes,
             bool read_only,
             std::shared_ptr<Storage> storage) {
            const CacheOptions options{
                to_path(path), budget_bytes, ram_bytes, daily_write_bytes, read_only, storage};
            const WithoutGil release;
            return model.open_cache(options);
          },
          "path"_a,
          nb::kw_only(),
          "budget_bytes"_a,
          "ram_bytes"_a,
          "daily_write_bytes"_a,
          "read_only"_a,
          "storage"_a.none() = nb::none(),
          nb::sig(
              "def open_cache(self, path: str | os.PathLike[str], *, budget_bytes: int, "
              "ram_bytes: int, daily_write_bytes: int, read_only: bool, "
              "storage: Storage | None = None) -> KvCache"),
          "A KV cache in a directory. storage: for tests.")
      .def(
          "trim_cache",
          [](Model& model, KvCache& cache, uint64_t ram_bytes) {
            const WithoutGil release;
            model.trim_cache(cache, ram_bytes);
          },
          "cache"_a,
          "ram_bytes"_a,
          "Lets go of what the cache holds in RAM beyond so many bytes.")
      .def(
          "restore",
          &restore,
          "snapshot"_a,
          "n_ctx"_a = 0,
          "cache"_a.none() = nb::none(),
          "storage"_a.none() = nb::none(),
          nb::sig(
              "def restore(self, snapshot: bytes | bytearray | memoryview | str | "
              "os.PathLike[str], n_ctx: int = 0, cache: KvCache | None = None, "
              "storage: Storage | None = None) -> Session"),
          "The inverse of Session.snapshot and of Session.save. storage: for tests.")
      .def(
          "step",
          &step,
          "inputs"_a,
          "logits"_a,
          nb::sig(
              "def step(self, inputs: list[tuple[Session, typing.Any]], logits: str) -> "
              "numpy.typing.NDArray[numpy.float32]"),
          "One pass for several sessions; f32[rows asked for, vocab_size].");
}

}  // namespace grebe::bind
