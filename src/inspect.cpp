// What a file and a model say of themselves, as dictionaries: config, weights, and inspect() for
// files that are not loaded.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unordered_set>

#include "bindings.h"

namespace grebe::bind {

std::string to_path(nb::handle object) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(object.ptr(), &bytes) == 0) {  // no path, a NUL, half a surrogate pair
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_TypeError))
      throw nb::python_error();
    PyErr_Clear();
    throw InvalidArgument(
        std::string("path is ") + nb::repr(object).c_str() + "; the name of a file is expected");
  }
  nb::object owner = nb::steal(bytes);
  return std::string(PyBytes_AsString(bytes), static_cast<size_t>(PyBytes_Size(bytes)));
}

namespace {

using namespace nb::literals;

// Strings of a file may be anything; a reader of metadata wants text.
nb::object to_text(std::string_view s) {
  return nb::steal(PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "replace"));
}

}  // namespace

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

namespace {

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
    const WithoutGil release;
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

}  // namespace

void bind_inspect(nb::module_& m) {
  m.def(
      "inspect",
      &inspect,
      "path"_a,
      nb::sig("def inspect(path: str | os.PathLike[str]) -> dict[str, typing.Any]"),
      "What is in a GGUF file, without loading it. See grebe.inspect.");
}

}  // namespace grebe::bind
