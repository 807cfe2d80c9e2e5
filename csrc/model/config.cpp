#include "model/config.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "core/error.h"
#include "io/gguf.h"

namespace grebe {

namespace {

constexpr std::string_view kPrefix = "deepseek4.";

std::string number_text(double v) {
  if (v == std::floor(v) && std::fabs(v) < 1e15) return std::to_string(static_cast<int64_t>(v));
  return std::to_string(v);
}

[[noreturn]] void unsupported(
    const GgufFile& file,
    const std::string& key,
    const std::string& found,
    const std::string& expected) {
  throw UnsupportedModel(
      file.path() + ": " + key + " is " + found + "; this build runs " + expected,
      key,
      found,
      expected);
}

// What is in the file, when it is not a DeepSeek V4 model: the reader should learn what he has, not
// only what he lacks.
void check_architecture(const GgufFile& file) {
  const std::string key = "general.architecture";
  const std::string expected = "'deepseek4' (DeepSeek V4 Flash)";
  const std::string_view name = file.get_string("general.name").value_or("");
  const std::string named = name.empty() ? "" : " named " + quoted(name);
  const auto refuse = [&](const std::string& found, const std::string& what) {
    throw UnsupportedModel(file.path() + ": " + what, key, found, expected);
  };

  const std::string_view kind = file.get_string("general.type").value_or("model");
  if (kind != "model") {
    throw UnsupportedModel(
        file.path() + ": general.type is " + quoted(kind) + named + ", not a model",
        "general.type",
        std::string(kind),
        "model");
  }
  const auto architecture = file.get_string(key);
  if (!architecture) {
    // ds4 never looks at the name; a file that has the numbers of the model is taken as the model.
    const auto& keys = file.keys();
    if (std::none_of(keys.begin(), keys.end(), [](const GgufKey& k) {
          return k.key.starts_with(kPrefix);
        })) {
      refuse(
          "absent",
          "neither general.architecture nor any deepseek4.* key; not a DeepSeek V4 model");
    }
  } else if (*architecture == "deepseek41") {
    refuse(
        "deepseek41",
        "a DeepSeek V4.1 Flash model" + named + ": another architecture; this build runs " +
            expected);
  } else if (architecture->starts_with("deepseek4_")) {  // deepseek4_mtp_support and the like
    const bool dspark = architecture->find("dspark") != std::string_view::npos;
    refuse(
        std::string(*architecture),
        std::string("the ") + (dspark ? "DSpark" : "MTP") + " sidecar of a model (" +
            std::string(*architecture) + named + "); load the main file instead");
  } else if (*architecture != "deepseek4") {
    refuse(
        std::string(*architecture),
        "a " + quoted(*architecture) + " model" + named + "; this build runs " + expected);
  }
  // DSpark sidecars carry the main architecture's name.
  if (!find_model_tensor(file, "token_embd.weight")) {
    const auto& tensors = file.tensors();
    if (std::any_of(tensors.begin(), tensors.end(), [](const GgufTensor& t) {
          return t.name.starts_with("mtp.") || t.name.starts_with("dspark.");
        })) {
      throw UnsupportedModel(
          file.path() +
              ": holds only draft layers (an MTP or DSpark sidecar); load the main file instead",
          "token_embd.weight",
          "absent",
          "present");
    }
  }
}

// Keys with range checks. A key that is absent takes the size of a tensor that shows it, else the
// Flash default.
class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file) {}

  static std::string full(std::string_view key) { return std::string(kPrefix) + std::string(key); }
  bool has(std::string_view key) const { return file_.find_key(full(key)); }

  std::optional<int64_t> integer(std::string_view key, int64_t low, int64_t high) const {
    const std::string name = full(key);
    // Some writers store one value per layer; equal values are one value.
    const auto values = file_.get_int_array(name);
    if (!values) return std::nullopt;
    if (values->empty()) unsupported(file_, name, "an empty array", "one number");
    for (const int64_t v : *values) {
      if (v != values->front())
        unsupported(file_, name, "different by layer", "the same in all layers");
    }
    check(name, values->front(), low, high);
    return values->front();
  }
  void read(
      int32_t& field,
      std::string_view key,
      int64_t low,
      int64_t high,
      const std::string& tensor = "",
      size_t dim = 0) const {
    if (const auto v = integer(key, low, high)) {
      field = static_cast<int32_t>(*v);
    } else if (const GgufTensor* t = tensor.empty() ? nullptr : find_model_tensor(file_, tensor)) {
      const uint64_t n = t->dim(dim);
      if (n < static_cast<uint64_t>(low) || n > static_cast<uint64_t>(high)) {
        unsupported(
            file_,
            "tensor " + quoted(tensor),
            t->shape(),
            full(key) + " from " + std::to_string(low) + " to " + std::to_string(high));
      }
      field = static_cast<int32_t>(n);
    }
  }
  void read(float& field, std::string_view key, double low, double high) const {
    const std::string name = full(key);
    if (const auto v = file_.get_float(name)) {
      check(name, *v, low, high);
      field = static_cast<float>(*v);
    }
  }
  /// Refuses a key that says something else than `value`.
  void demand(std::string_view key, int64_t value) const {
    const std::string name = full(key);
    const auto v = file_.get_int(name);
    if (v && *v != value) unsupported(file_, name, std::to_string(*v), std::to_string(value));
  }
  template <class T>
  void check(const std::string& name, T v, T low, T high) const {
    if (!(v >= low && v <= high)) {  // NaN too
      unsupported(
          file_,
          name,
          number_text(static_cast<double>(v)),
          number_text(static_cast<double>(low)) + " to " + number_text(static_cast<double>(high)));
    }
  }

 private:
  const GgufFile& file_;
};

// "blk.7.attn_norm.weight" -> 7; -1 for other names. Numbers of more than six digits are other
// names.
int64_t layer_of(std::string_view name) {
  if (!name.starts_with("blk.")) return -1;
  int64_t n = 0;
  size_t i = 4;
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9'; ++i) {
    if (i > 9) return -1;
    n = n * 10 + (name[i] - '0');
  }
  return i > 4 && i < name.size() && name[i] == '.' ? n : -1;
}

// Layers and draft layers. llama.cpp stores a draft layer as one more block with nextn.* tensors
// and counts it in block_count; other files say nextn_predict_layers = 1 without having it. The
// tensors decide.
void read_layers(const GgufFile& file, const Reader& in, ModelConfig& c) {
  int64_t last = -1;
  std::set<int64_t> nextn_blocks;
  std::set<std::string_view> drafts;
  for (const GgufTensor& t : file.tensors()) {
    const int64_t layer = layer_of(t.name);
    last = std::max(last, layer);
    if (layer >= 0 && t.name.find(".nextn.") != std::string_view::npos) nextn_blocks.insert(layer);
    if (t.name.starts_with("mtp.")) drafts.insert(t.name.substr(0, t.name.find('.', 4)));
    if (t.name.starts_with("dspark.")) drafts.insert(t.name.substr(0, t.name.find('.', 7)));
  }
  constexpr int64_t kMaxLayers = 512;
  int64_t n = in.integer("block_count", 1, kMaxLayers).value_or(last + 1);
  while (n > 0 && nextn_blocks.contains(n - 1)) --n;
  if (n < 1 || n > kMaxLayers)
    unsupported(
        file, "number of blk.* layers", std::to_string(n), "1 to " + std::to_string(kMaxLayers));
  c.n_layers = static_cast<int32_t>(n);
  c.n_mtp_layers = static_cast<int32_t>(
      std::count_if(nextn_blocks.begin(), nextn_blocks.end(), [&](int64_t i) { return i >= n; }) +
      drafts.size());
}

void read_compress_ratios(const GgufFile& file, ModelConfig& c) {
  const std::string key = Reader::full("attention.compress_ratios");
  if (const auto values = file.get_int_array(key)) {
    if (values->size() < static_cast<size_t>(c.n_layers)) {
      unsupported(
          file,
          key,
          std::to_string(values->size()) + " long",
          "at least one entry for each of the " + std::to_string(c.n_layers) + " layers");
    }
    for (int32_t i = 0; i < c.n_layers;
         ++i) {  // entries past the last layer are those of draft layers
      const int64_t ratio = (*values)[i];
      if (ratio != 0 && ratio != 4 && ratio != 128) {
        unsupported(
            file, key + "[" + std::to_string(i) + "]", std::to_string(ratio), "0, 4 or 128");
      }
      c.compress_ratios.push_back(static_cast<int32_t>(ratio));
    }
    return;
  }
  for (int32_t i = 0; i < c.n_layers;
       ++i) {  // the table of position biases has one row per pooled token
    const std::string name = "blk." + std::to_string(i) + ".attn_compressor_ape.weight";
    const GgufTensor* ape = find_model_tensor(file, name);
    const uint64_t ratio = ape ? ape->dim(1) : 0;
    if (ratio != 0 && ratio != 4 && ratio != 128)
      unsupported(
          file, "tensor " + quoted(name), ape->shape(), "4 or 128 rows (" + key + " is absent)");
    c.compress_ratios.push_back(static_cast<int32_t>(ratio));
  }
}

std::optional<std::vector<float>> read_clamps(
    const GgufFile& file, std::string_view short_key, int32_t n_layers) {
  const std::string key = Reader::full(short_key);
  const auto values = file.get_float_array(key);
  if (!values) return std::nullopt;
  const GgufKey* k = file.find_key(key);
  const bool scalar = !std::holds_alternative<GgufArray>(k->value);
  if (!scalar && values->size() < static_cast<size_t>(n_layers)) {
    unsupported(
        file,
        key,
        std::to_string(values->size()) + " long",
        "one number or at least one for each of the " + std::to_string(n_layers) + " layers");
  }
  std::vector<float> out;
  for (int32_t i = 0; i < n_layers; ++i) {
    const double v = (*values)[scalar ? 0 : i];
    if (!(v >= 0 && v <= std::numeric_limits<float>::max()))
      unsupported(file, key, number_text(v), "0 (no clamp) or a positive number");
    out.push_back(static_cast<float>(v));
  }
  return out;
}

void read_rope(const GgufFile& file, const Reader& in, ModelConfig& c) {
  constexpr double kBig = 1e12;
  in.read(c.rope_theta, "rope.freq_base", 1, kBig);
  in.read(c.compress_rope_theta, "attention.compress_rope_freq_base", 1, kBig);
  in.read(c.yarn_factor, "rope.scaling.factor", -1, 1e6);
  if (const auto n = in.integer("rope.scaling.original_context_length", 0, int64_t{1} << 40))
    c.yarn_original_context = *n;
  in.read(c.yarn_beta_fast, "rope.scaling.yarn_beta_fast", 1e-3, 1e6);
  in.read(c.yarn_beta_slow, "rope.scaling.yarn_beta_slow", 1e-3, 1e6);
  const std::string key = Reader::full("rope.scaling.type");
  const std::string_view type = file.get_string(key).value_or("yarn");
  if (type == "none")
    c.yarn_factor = 0;
  else if (type != "yarn")
    unsupported(file, key, quoted(type), "'yarn' or 'none'");
}

// What the kernels and the cache formats assume of the numbers together.
void check_geometry(const GgufFile& file, const Reader& in, const ModelConfig& c) {
  const auto key = Reader::full;
  if (const auto v = in.integer("attention.value_length", 1, 1 << 20); v && *v != c.head_dim) {
    unsupported(
        file,
        key("attention.value_length"),
        std::to_string(*v),
        "values as wide as keys (attention.key_length " + std::to_string(c.head_dim) + ")");
  }
  if (c.rope_dim % 16 != 0 || c.rope_dim >= c.head_dim) {  // rows are whole vectors of 16 floats
    unsupported(
        file,
        key("rope.dimension_count"),
        std::to_string(c.rope_dim),
        "multiples of 16 below attention.key_length " + std::to_string(c.head_dim));
  }
  if ((c.head_dim - c.rope_dim) % 64 !=
      0) {  // the packed cache scales the non-rotary channels in blocks of 64
    unsupported(
        file,
        key("attention.key_length"),
        std::to_string(c.head_dim),
        "rope.dimension_count " + std::to_string(c.rope_dim) + " plus a multiple of 64");
  }
  if (!std::has_single_bit(static_cast<uint32_t>(c.index_head_dim)) || c.index_head_dim < 32 ||
      c.index_head_dim < c.rope_dim) {
    unsupported(
        file,
        key("attention.indexer.key_length"),
        std::to_string(c.index_head_dim),
        "a power of two, at least 32 and rope.dimension_count " + std::to_string(c.rope_dim));
  }
  if (c.n_heads % c.o_groups != 0) {
    unsupported(
        file,
        key("attention.output_group_count"),
        std::to_string(c.o_groups),
        "divisors of attention.head_count " + std::to_string(c.n_heads));
  }
  if (c.n_experts_per_token > c.n_experts) {
    unsupported(
        file,
        key("expert_used_count"),
        std::to_string(c.n_experts_per_token),
        "at most expert_count " + std::to_string(c.n_experts));
  }
}

}  // namespace

const GgufTensor* find_model_tensor(const GgufFile& file, std::string_view name) {
  if (const GgufTensor* t = file.find_tensor(name)) return t;
  return name.ends_with(".weight") || name.ends_with(".bias")
             ? file.find_tensor(name.substr(0, name.rfind('.')))
             : nullptr;
}

ModelConfig ModelConfig::from_gguf(const GgufFile& file) {
  check_architecture(file);
  const Reader in(file);
  ModelConfig c;
  c.name = std::string(file.get_string("general.name").value_or(""));
  read_layers(file, in, c);

  in.read(c.hidden_size, "embedding_length", 1, 65536, "token_embd.weight", 0);
  in.read(c.vocab_size, "vocab_size", 1, 1 << 22, "token_embd.weight", 1);
  in.read(c.n_heads, "attention.head_count", 1, 4096, "blk.0.attn_sinks.weight");
  in.demand("attention.head_count_kv", 1);
  in.read(c.head_dim, "attention.key_length", 2, 8192, "blk.0.attn_kv.weight", 1);
  in.read(c.rope_dim, "rope.dimension_count", 2, 8192);
  in.read(c.q_lora_rank, "attention.q_lora_rank", 1, 65536, "blk.0.attn_q_a.weight", 1);
  in.read(c.o_groups, "attention.output_group_count", 1, 4096);
  in.read(c.o_lora_rank, "attention.output_lora_rank", 1, 65536);
  in.read(c.window_size, "attention.sliding_window", 1, 4096);
  read_compress_ratios(file, c);
  // The indexer's sizes show in the first layer that has one.
  const auto csa =
      std::find(c.compress_ratios.begin(), c.compress_ratios.end(), 4) - c.compress_ratios.begin();
  const std::string csa_layer = "blk." + std::to_string(csa) + ".";
  in.read(
      c.index_n_heads,
      "attention.indexer.head_count",
      1,
      4096,
      csa_layer + "indexer.proj.weight",
      1);
  in.read(
      c.index_head_dim,
      "attention.indexer.key_length",
      1,
      8192,
      csa_layer + "indexer_compressor_norm.weight");
  in.read(c.index_top_k, "attention.indexer.top_k", 1, 1 << 20);
  in.read(c.hc_mult, "hyper_connection.count", 1, 8, "output_hc_base.weight");
  in.read(c.hc_sinkhorn_iters, "hyper_connection.sinkhorn_iterations", 1, 1000);
  in.read(c.hc_eps, "hyper_connection.epsilon", 0, 1);
  in.read(c.rms_eps, "attention.layer_norm_rms_epsilon", 0, 1);

  in.read(c.n_experts, "expert_count", 1, 65536, "blk.0.ffn_gate_exps.weight", 2);
  in.read(c.n_experts_per_token, "expert_used_count", 1, 64);
  in.demand("expert_shared_count", 1);
  in.demand("expert_group_count", 0);
  in.demand("expert_group_used_count", 0);
  if (const auto f = in.integer("expert_gating_func", 0, 1 << 20); f && *f != 4) {
    unsupported(
        file,
        Reader::full("expert_gating_func"),
        std::to_string(*f),
        "4 (square root of softplus)");
  }
  in.demand("expert_weights_norm", 1);
  in.read(
      c.moe_intermediate_size,
      "expert_feed_forward_length",
      1,
      1 << 18,
      "blk.0.ffn_gate_exps.weight",
      1);
  in.read(c.routed_scaling_factor, "expert_weights_scale", 1e-6, 1e6);
  // Without the key, the layers that have a table.
  int32_t n_tables = 0;
  while (n_tables < c.n_layers &&
         find_model_tensor(file, "blk." + std::to_string(n_tables) + ".ffn_gate_tid2eid.weight"))
    ++n_tables;
  c.n_hash_layers = n_tables;
  in.read(c.n_hash_layers, "hash_layer_count", 0, 512);
  c.swiglu_clamp = read_clamps(file, "swiglu_clamp_exp", c.n_layers)
                       .value_or(std::vector<float>(c.n_layers, 10.f));
  c.swiglu_clamp_shared =
      read_clamps(file, "swiglu_clamp_shexp", c.n_layers).value_or(c.swiglu_clamp);

  read_rope(file, in, c);
  if (const auto n = in.integer("context_length", 1, int64_t{1} << 40)) c.max_context = *n;
  for (const auto& [field, key] :
       {std::pair{&c.bos_token, "tokenizer.ggml.bos_token_id"},
        {&c.eos_token, "tokenizer.ggml.eos_token_id"}}) {
    if (const auto id = file.get_int(key)) {
      in.check<int64_t>(key, *id, 0, c.vocab_size - 1);
      *field = static_cast<int32_t>(*id);
    }
  }
  check_geometry(file, in, c);
  return c;
}

}  // namespace grebe
