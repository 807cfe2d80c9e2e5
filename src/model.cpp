// grebe._engine.Model and inspect(): a loaded model, and a look into a file without loading it.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unordered_set>

#include "bindings.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

std::string to_path(nb::handle object) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(object.ptr(), &bytes) == 0) throw nb::python_error();
  nb::object owner = nb::steal(bytes);
  return std::string(PyBytes_AsString(bytes), static_cast<size_t>(PyBytes_Size(bytes)));
}

// Strings of a file may be anything; a reader of metadata wants text.
nb::object to_text(std::string_view s) {
  return nb::steal(PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "replace"));
}

/// The fields of grebe.config.ModelConfig, in its names.
nb::dict config_dict(const ModelConfig& c) {
  nb::dict d;
  d["name"] = to_text(c.name);
#define GREBE_FIELD(field) d[#field] = c.field
  GREBE_FIELD(n_layers);
  GREBE_FIELD(hidden_size);
  GREBE_FIELD(vocab_size);
  GREBE_FIELD(n_heads);
  GREBE_FIELD(head_dim);
  GREBE_FIELD(rope_dim);
  GREBE_FIELD(q_lora_rank);
  GREBE_FIELD(o_groups);
  GREBE_FIELD(o_lora_rank);
  GREBE_FIELD(window_size);
  GREBE_FIELD(index_n_heads);
  GREBE_FIELD(index_head_dim);
  GREBE_FIELD(index_top_k);
  GREBE_FIELD(hc_mult);
  GREBE_FIELD(hc_sinkhorn_iters);
  GREBE_FIELD(hc_eps);
  GREBE_FIELD(rms_eps);
  GREBE_FIELD(n_experts);
  GREBE_FIELD(n_experts_per_token);
  GREBE_FIELD(n_shared_experts);
  GREBE_FIELD(moe_intermediate_size);
  GREBE_FIELD(routed_scaling_factor);
  GREBE_FIELD(n_hash_layers);
  GREBE_FIELD(rope_theta);
  GREBE_FIELD(compress_rope_theta);
  GREBE_FIELD(yarn_factor);
  GREBE_FIELD(yarn_original_context);
  GREBE_FIELD(yarn_beta_fast);
  GREBE_FIELD(yarn_beta_slow);
  GREBE_FIELD(max_context);
  GREBE_FIELD(bos_token);
  GREBE_FIELD(eos_token);
  GREBE_FIELD(n_mtp_layers);
#undef GREBE_FIELD
  d["compress_ratios"] = nb::tuple(nb::cast(c.compress_ratios));
  d["swiglu_clamp"] = nb::tuple(nb::cast(c.swiglu_clamp));
  d["swiglu_clamp_shared"] = nb::tuple(nb::cast(c.swiglu_clamp_shared));
  return d;
}

nb::dict weights_dict(const ModelWeights& w) {
  nb::dict d;
  uint64_t expert_bytes = 0;
  std::unordered_set<const void*>
      seen;  // synthetic files share one payload among layers; each byte is resident once
  for (const LayerWeights& layer : w.layers) {
    for (const Weight* e : {&layer.gate_exps, &layer.up_exps, &layer.down_exps}) {
      if (*e && seen.insert(e->data).second) expert_bytes += e->n_bytes();
    }
  }
  d["bytes_per_token"] = w.bytes_per_token;
  d["total_bytes"] = w.total_bytes;
  d["expert_bytes"] = expert_bytes;
  d["ignored"] = nb::cast(w.ignored);
  return d;
}

template <class T>
nb::object array_head(const GgufArray& array, uint64_t n) {
  nb::list out;
  for (uint64_t i = 0; i < n; i++) {
    T value;
    std::memcpy(&value, array.data + i * sizeof(T), sizeof(T));
    out.append(value);
  }
  return out;
}

// The first elements of an array, for display; the arrays of a vocabulary are long. Strings are not
// unpacked here.
constexpr uint64_t kArrayHead = 64;

nb::object array_dict(const GgufArray& array) {
  const uint64_t n = array.count < kArrayHead ? array.count : kArrayHead;
  static constexpr const char* kNames[] = {
      "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "array", "u64", "i64", "f64"};
  nb::object head = nb::list();
  switch (array.element_type) {
    case GgufType::kU8:
      head = array_head<uint8_t>(array, n);
      break;
    case GgufType::kI8:
      head = array_head<int8_t>(array, n);
      break;
    case GgufType::kU16:
      head = array_head<uint16_t>(array, n);
      break;
    case GgufType::kI16:
      head = array_head<int16_t>(array, n);
      break;
    case GgufType::kU32:
      head = array_head<uint32_t>(array, n);
      break;
    case GgufType::kI32:
      head = array_head<int32_t>(array, n);
      break;
    case GgufType::kF32:
      head = array_head<float>(array, n);
      break;
    case GgufType::kU64:
      head = array_head<uint64_t>(array, n);
      break;
    case GgufType::kI64:
      head = array_head<int64_t>(array, n);
      break;
    case GgufType::kF64:
      head = array_head<double>(array, n);
      break;
    case GgufType::kBool:
      head = array_head<uint8_t>(array, n);
      break;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  nb::dict d;
  d["element_type"] = kNames[static_cast<uint32_t>(array.element_type)];
  d["count"] = array.count;
  d["head"] = nb::tuple(head);
  return d;
}

nb::object key_value(const GgufValue& value) {
  return std::visit(
      [](const auto& v) -> nb::object {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::string_view>)
          return to_text(v);
        else if constexpr (std::is_same_v<T, GgufArray>)
          return array_dict(v);
        else
          return nb::cast(v);
      },
      value);
}

// A file that holds another model is still worth looking at: what stops the engine is returned as
// text beside the tables.
nb::dict inspect(nb::object path_object) {
  const std::string path = to_path(path_object);
  std::shared_ptr<const GgufFile> file;
  ModelConfig config;
  ModelWeights weights;
  bool has_config = false, has_weights = false;
  std::string problem;
  {
    nb::gil_scoped_release release;
    file = GgufFile::open(path);
    try {
      config = ModelConfig::from_gguf(*file);
      has_config = true;
      weights = ModelWeights::from_gguf(*file, config);
      has_weights = true;
    } catch (const UnsupportedModel& e) {
      problem = e.what();
    } catch (const FormatError& e) {
      problem = e.what();
    }
  }
  nb::dict keys;
  for (const GgufKey& key : file->keys()) keys[to_text(key.key)] = key_value(key.value);
  nb::list tensors;
  for (const GgufTensor& t : file->tensors()) {
    const DType type = static_cast<DType>(t.type);
    tensors.append(
        nb::make_tuple(
            to_text(t.name),
            dtype_name(type),
            dtype_info(type).name != nullptr,
            nb::tuple(nb::cast(t.ne)),
            t.n_bytes,
            t.offset,
            t.shard));
  }
  nb::dict d;
  d["version"] = file->version();
  d["file_bytes"] = file->file_bytes();
  d["metadata"] = keys;
  d["tensors"] = tensors;
  d["config"] = has_config ? nb::object(config_dict(config)) : nb::none();
  d["weights"] = has_weights ? nb::object(weights_dict(weights)) : nb::none();
  d["problem"] = to_text(problem);
  return d;
}

std::shared_ptr<Model> load(
    nb::object path_object,
    const std::string& backend,
    int n_threads,
    const std::string& kv_rounding,
    const std::string& kernels,
    const std::string& isa,
    int prefill_chunk) {
  const std::string path = to_path(path_object);
  const LoadOptions options{backend, n_threads, kv_rounding, kernels, isa, prefill_chunk};
  nb::gil_scoped_release release;
  return Model::load(path, options);
}

nb::dict options_dict(const Model& model) {
  const LoadOptions& o = model.options();
  nb::dict d;
  d["backend"] = o.backend;
  d["n_threads"] = o.n_threads;
  d["kv_rounding"] = o.kv_rounding;
  d["kernels"] = o.kernels;
  d["isa"] = o.isa;
  d["prefill_chunk"] = o.prefill_chunk;
  return d;
}

BoundSession restore(Model& model, nb::object snapshot) {
  Py_buffer view;
  if (PyObject_GetBuffer(snapshot.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  struct Release {
    Py_buffer* view;
    ~Release() { PyBuffer_Release(view); }
  } guard{&view};
  nb::gil_scoped_release release;
  return {model.restore({static_cast<const uint8_t*>(view.buf), static_cast<size_t>(view.len)})};
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
    uses.emplace_back(*sessions[i]);
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
          "Maps the file and starts the threads. Releases the GIL.",
          nb::sig(
              "def load(path: str | os.PathLike[str], *, backend: str, n_threads: int, "
              "kv_rounding: str, kernels: str, "
              "isa: str, prefill_chunk: int) -> Model"))
      .def(
          "config",
          [](const Model& model) { return config_dict(model.config()); },
          nb::sig("def config(self) -> dict[str, typing.Any]"),
          "The fields of grebe.ModelConfig.")
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
          nb::call_guard<nb::gil_scoped_release>(),
          "Scratch held by the engine now, without weights and sessions.")
      .def_prop_ro(
          "tokenizer",
          [](const Model& model) { return model.tokenizer(); },
          nb::rv_policy::reference_internal,
          nb::sig("def tokenizer(self) -> Tokenizer | None"),
          "None when the file has no tokenizer.")
      .def(
          "session",
          [](Model& model, int64_t n_ctx) {
            nb::gil_scoped_release release;
            return BoundSession{model.session(n_ctx)};
          },
          "n_ctx"_a,
          "A new session; n_ctx 0 means the model's maximum.")
      .def(
          "restore",
          &restore,
          "snapshot"_a,
          nb::sig("def restore(self, snapshot: bytes | bytearray | memoryview) -> Session"),
          "The inverse of Session.snapshot.")
      .def(
          "step",
          &step,
          "inputs"_a,
          "logits"_a,
          nb::sig(
              "def step(self, inputs: list[tuple[Session, typing.Any]], logits: str) -> "
              "numpy.typing.NDArray[numpy.float32]"),
          "One pass for several sessions; f32[rows asked for, vocab_size].");
  m.def(
      "inspect",
      &inspect,
      "path"_a,
      nb::sig("def inspect(path: str | os.PathLike[str]) -> dict[str, typing.Any]"),
      "What is in a GGUF file, without loading it. See grebe.inspect.");
}

}  // namespace grebe::bind
