#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "core/error.h"
#include "io/gguf.h"

namespace grebe {

namespace {

// Types that a matrix may have. I8 appears only as half of an FP8 pair (see matrix()).
constexpr DType kMatrixTypes[] = {
    DType::kF32,
    DType::kF16,
    DType::kBF16,
    DType::kQ8_0,
    DType::kQ2_K,
    DType::kQ3_K,
    DType::kQ4_K,
    DType::kQ5_K,
    DType::kQ6_K,
    DType::kIQ2_XXS,
    DType::kIQ3_XXS,
    DType::kIQ2_S,
    DType::kMXFP4};
constexpr DType kVectorTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// An expected size and the keys that it comes from, for messages.
struct Dim {
  int64_t n;
  const char* keys;
};

std::string type_list(std::span<const DType> types) {
  std::string out;
  for (const DType t : types) out += (out.empty() ? "" : ", ") + dtype_name(t);
  return out;
}

std::string shape_text(std::span<const Dim> dims) {
  while (dims.size() > 1 && dims.back().n == 1) dims = dims.first(dims.size() - 1);
  std::string out = "[";
  for (size_t i = 0; i < dims.size(); ++i) out += (i ? ", " : "") + std::to_string(dims[i].n);
  return out + "]";
}

class Loader {
 public:
  Loader(const GgufFile& file, ModelConfig& config)
      : file_(file), c_(config), used_(file.tensors().size()) {}

  ModelWeights load();

 private:
  const GgufFile& file_;
  ModelConfig& c_;
  std::vector<bool> used_;
  uint64_t bytes_per_token_ = 0;

  bool has(const std::string& name) const { return find_model_tensor(file_, name); }
  const GgufTensor& require(const std::string& name, std::span<const Dim> dims);
  void check_shape(const GgufTensor& t, std::span<const Dim> dims) const;
  void check_type(const GgufTensor& t, std::span<const DType> types) const;
  [[noreturn]] void contradiction(
      const std::string& key,
      const std::string& found,
      const std::string& tensor,
      bool present) const;

  /// n_active of n_experts matrices are read for a token; 0: counted by the caller.
  Weight matrix(
      const std::string& name, Dim in, Dim out, Dim n_experts = {1, ""}, int64_t n_active = 1);
  Vec vector(const std::string& name, Dim n, Dim rows = {1, ""});
  std::vector<int32_t> token_experts(const std::string& name, int32_t n_experts);
  HyperWeights hyper(const std::string& prefix, const std::string& part);
  CompressorWeights compressor(const std::string& prefix, int32_t ratio, Dim row);
  LayerWeights layer(int32_t i);

  Dim hidden() const { return {c_.hidden_size, "embedding_length"}; }
  Dim streams() const {
    return {int64_t{c_.hc_mult} * c_.hidden_size, "hyper_connection.count x embedding_length"};
  }
};

void Loader::check_shape(const GgufTensor& t, std::span<const Dim> dims) const {
  // Rows of one matrix may come in groups: attn_output_a as [in, rank, groups] has the bytes of
  // [in, rank x groups].
  if (dims.size() == 3 && dims[2].n == 1 && t.dim(0) == static_cast<uint64_t>(dims[0].n) &&
      t.dim(1) * t.dim(2) == static_cast<uint64_t>(dims[1].n) && t.dim(3) == 1)
    return;
  for (size_t i = 0; i < 4; ++i) {  // trailing dimensions of 1 are optional
    const int64_t expected = i < dims.size() ? dims[i].n : 1;
    if (t.dim(i) == static_cast<uint64_t>(expected)) continue;
    std::string why;
    if (i < dims.size() && *dims[i].keys)
      why = " (deepseek4." + std::string(dims[i].keys) + " is " + std::to_string(expected) + ")";
    throw UnsupportedModel(
        "gguf: tensor " + quoted(t.name) + " is " + t.shape() + "; expected " + shape_text(dims) +
            why,
        std::string(t.name),
        t.shape(),
        shape_text(dims));
  }
}

void Loader::check_type(const GgufTensor& t, std::span<const DType> types) const {
  if (std::find(types.begin(), types.end(), static_cast<DType>(t.type)) != types.end()) return;
  const std::string found = gguf_type_name(t.type), expected = type_list(types);
  throw UnsupportedModel(
      "gguf: tensor " + quoted(t.name) + " is " + found + "; this build reads " + expected,
      std::string(t.name),
      found,
      expected);
}

void Loader::contradiction(
    const std::string& key,
    const std::string& found,
    const std::string& tensor,
    bool present) const {
  const std::string state = present ? "present" : "absent";
  throw UnsupportedModel(
      "gguf: deepseek4." + key + " is " + found + " but tensor " + quoted(tensor) + " is " + state,
      key,
      found,
      "a value that fits tensor " + quoted(tensor) + ", which is " + state);
}

const GgufTensor& Loader::require(const std::string& name, std::span<const Dim> dims) {
  const GgufTensor* t = find_model_tensor(file_, name);
  if (!t) {
    throw UnsupportedModel(
        "gguf: tensor " + quoted(name) + " is missing; expected shape " + shape_text(dims),
        name,
        "absent",
        shape_text(dims));
  }
  used_[t - file_.tensors().data()] = true;
  check_shape(*t, dims);
  return *t;
}

Weight Loader::matrix(const std::string& name, Dim in, Dim out, Dim n_experts, int64_t n_active) {
  const Dim dims[] = {in, out, n_experts};
  const GgufTensor& t = require(name, dims);
  Weight w;
  w.name = name;
  w.n_in = in.n;
  w.n_out = out.n;
  w.n_experts = n_experts.n;
  uint64_t scale_bytes = 0;
  if (t.type == static_cast<uint32_t>(DType::kI8)) {
    // FP8: no GGUF type exists for it, so the E4M3 codes are an I8 tensor and the E8M0 scales of
    // their 128x128 tiles another one (docs/gguf.md).
    const std::string scale_name = name.substr(0, name.rfind('.')) + ".scale";
    if (!has(scale_name)) {
      throw UnsupportedModel(
          "gguf: tensor " + quoted(name) +
              " is I8 without scales; FP8 weights need a companion tensor " + quoted(scale_name),
          scale_name,
          "absent",
          "I8 scales of 128x128 tiles");
    }
    const Dim scale_dims[] = {{(in.n + 127) / 128, ""}, {(out.n + 127) / 128, ""}, n_experts};
    const GgufTensor& scale = require(scale_name, scale_dims);
    const DType scale_type[] = {DType::kI8};
    check_type(scale, scale_type);
    w.dtype = DType::kF8E4M3;
    w.scale = scale.data;
    scale_bytes = scale.n_bytes;
  } else {
    check_type(t, kMatrixTypes);
    w.dtype = static_cast<DType>(t.type);
  }
  w.data = t.data;
  bytes_per_token_ += (t.n_bytes + scale_bytes) / n_experts.n * n_active;
  return w;
}

Vec Loader::vector(const std::string& name, Dim n, Dim rows) {
  const Dim dims[] = {n, rows};
  const GgufTensor& t = require(name, dims);
  check_type(t, kVectorTypes);
  Vec v(n.n * rows.n);
  const auto half = [&](size_t i) {
    uint16_t h;
    std::memcpy(&h, t.data + 2 * i, 2);
    return h;
  };
  switch (static_cast<DType>(t.type)) {
    case DType::kF32:
      std::memcpy(v.data(), t.data, t.n_bytes);
      break;
    case DType::kF16:
      for (size_t i = 0; i < v.size(); ++i) v[i] = f16_to_f32(half(i));
      break;
    default:
      for (size_t i = 0; i < v.size(); ++i) v[i] = bf16_to_f32(half(i));
  }
  return v;
}

std::vector<int32_t> Loader::token_experts(const std::string& name, int32_t n_experts) {
  const Dim dims[] = {{c_.n_experts_per_token, "expert_used_count"}, {c_.vocab_size, "vocab_size"}};
  const GgufTensor& t = require(name, dims);
  const DType type[] = {DType::kI32};
  check_type(t, type);
  std::vector<int32_t> table(t.n_bytes / sizeof(int32_t));
  std::memcpy(table.data(), t.data, t.n_bytes);
  for (size_t i = 0; i < table.size(); ++i) {  // they will index memory
    if (table[i] < 0 || table[i] >= n_experts) {
      throw FormatError(
          file_.shard_path(t.shard),
          t.offset + i * sizeof(int32_t),
          "tensor " + quoted(name) + " names expert " + std::to_string(table[i]) +
              "; the layer has " + std::to_string(n_experts));
    }
  }
  bytes_per_token_ += t.n_bytes / c_.vocab_size;
  return table;
}

HyperWeights Loader::hyper(const std::string& prefix, const std::string& part) {
  const int64_t n = c_.hc_mult;
  const Dim mixes{(2 + n) * n, "hyper_connection.count x (2 + count)"};
  const std::string stem = prefix + "hc_" + part + "_";
  return {
      matrix(stem + "fn.weight", streams(), mixes),
      vector(stem + "base.weight", mixes),
      vector(stem + "scale.weight", {3, ""})};
}

CompressorWeights Loader::compressor(const std::string& prefix, int32_t ratio, Dim row) {
  // Ratio 4 pools overlapping windows: one half of the width feeds the next row, the other the
  // current one.
  const Dim width{ratio == 4 ? 2 * row.n : row.n, row.keys};
  return {
      matrix(prefix + "kv.weight", hidden(), width),
      matrix(prefix + "gate.weight", hidden(), width),
      vector(prefix + "ape.weight", width, {ratio, "attention.compress_ratios of the layer"}),
      vector(prefix + "norm.weight", row)};
}

LayerWeights Loader::layer(int32_t i) {
  const std::string p = "blk." + std::to_string(i) + ".";
  const Dim q_lora{c_.q_lora_rank, "attention.q_lora_rank"};
  const Dim head{c_.head_dim, "attention.key_length"};
  const int64_t n_q = int64_t{c_.n_heads} * c_.head_dim;
  const Dim low{
      int64_t{c_.o_groups} * c_.o_lora_rank,
      "attention.output_group_count x attention.output_lora_rank"};

  LayerWeights l;
  l.hc_attn = hyper(p, "attn");
  l.hc_ffn = hyper(p, "ffn");
  l.attn_norm = vector(p + "attn_norm.weight", hidden());
  l.ffn_norm = vector(p + "ffn_norm.weight", hidden());
  l.q_a = matrix(p + "attn_q_a.weight", hidden(), q_lora);
  l.q_b =
      matrix(p + "attn_q_b.weight", q_lora, {n_q, "attention.head_count x attention.key_length"});
  l.kv = matrix(p + "attn_kv.weight", hidden(), head);
  l.q_a_norm = vector(p + "attn_q_a_norm.weight", q_lora);
  l.kv_norm = vector(p + "attn_kv_a_norm.weight", head);
  l.sinks = vector(p + "attn_sinks.weight", {c_.n_heads, "attention.head_count"});
  l.o_a = matrix(
      p + "attn_output_a.weight",
      {n_q / c_.o_groups,
       "attention.head_count x attention.key_length / attention.output_group_count"},
      low);
  l.o_b = matrix(p + "attn_output_b.weight", low, hidden());

  const int32_t ratio = c_.compress_ratios[i];
  const std::string ratio_key = "attention.compress_ratios[" + std::to_string(i) + "]";
  for (const auto& [name, expected] :
       {std::pair{p + "attn_compressor_kv.weight", ratio != 0},
        {p + "indexer.attn_q_b.weight", ratio == 4}}) {
    if (has(name) != expected) contradiction(ratio_key, std::to_string(ratio), name, has(name));
  }
  if (ratio != 0) l.compressor = compressor(p + "attn_compressor_", ratio, head);
  if (ratio == 4) {
    const Dim index_head{c_.index_head_dim, "attention.indexer.key_length"};
    l.index_compressor = compressor(p + "indexer_compressor_", ratio, index_head);
    l.index_q_b = matrix(
        p + "indexer.attn_q_b.weight",
        q_lora,
        {int64_t{c_.index_n_heads} * c_.index_head_dim,
         "attention.indexer.head_count x key_length"});
    l.index_proj = matrix(
        p + "indexer.proj.weight", hidden(), {c_.index_n_heads, "attention.indexer.head_count"});
  }

  // Pruned files have fewer experts than expert_count, possibly different by layer; the gate's
  // stack says how many.
  const std::string gate = p + "ffn_gate_exps.weight";
  const GgufTensor* stack = find_model_tensor(file_, gate);
  l.n_experts = c_.n_experts;
  if (stack && stack->dim(2) < static_cast<uint64_t>(c_.n_experts))
    l.n_experts = static_cast<int32_t>(stack->dim(2));
  const bool pruned = l.n_experts < c_.n_experts;
  if (l.n_experts < c_.n_experts_per_token) {
    throw UnsupportedModel(
        "gguf: tensor " + quoted(gate) + " has " + std::to_string(l.n_experts) +
            " experts; deepseek4.expert_used_count is " + std::to_string(c_.n_experts_per_token),
        gate,
        std::to_string(l.n_experts),
        "at least " + std::to_string(c_.n_experts_per_token));
  }
  const Dim experts{l.n_experts, pruned ? "" : "expert_count"};
  const Dim ff{c_.moe_intermediate_size, "expert_feed_forward_length"};
  const int64_t n_active = c_.n_experts_per_token;
  l.gate_exps = matrix(gate, hidden(), ff, experts, n_active);
  l.up_exps = matrix(p + "ffn_up_exps.weight", hidden(), ff, experts, n_active);
  l.down_exps = matrix(p + "ffn_down_exps.weight", ff, hidden(), experts, n_active);
  l.gate_shexp = matrix(p + "ffn_gate_shexp.weight", hidden(), ff);
  l.up_shexp = matrix(p + "ffn_up_shexp.weight", hidden(), ff);
  l.down_shexp = matrix(p + "ffn_down_shexp.weight", ff, hidden());
  l.router = matrix(p + "ffn_gate_inp.weight", hidden(), experts);
  const std::string table = p + "ffn_gate_tid2eid.weight";
  if (has(table) != (i < c_.n_hash_layers))
    contradiction("hash_layer_count", std::to_string(c_.n_hash_layers), table, has(table));
  if (has(table))
    l.tid2eid = token_experts(table, l.n_experts);
  else
    l.router_bias = vector(p + "exp_probs_b.bias", experts);
  return l;
}

ModelWeights Loader::load() {
  // Vectors and expert tables are read now, a few kilobytes here and there; asked for together they
  // take one burst of a cold disk instead of hundreds of waits.
  for (const GgufTensor& t : file_.tensors()) {
    const bool small = t.ne.size() == 1 || t.name.ends_with("_ape.weight");
    if (t.data && (small || t.type == static_cast<uint32_t>(DType::kI32)))
      prefetch(t.data, t.n_bytes);
  }
  const Dim vocab{c_.vocab_size, "vocab_size"};
  const Dim n{c_.hc_mult, "hyper_connection.count"};
  ModelWeights w;
  w.token_embd = matrix("token_embd.weight", hidden(), vocab, {1, ""}, 0);
  bytes_per_token_ += w.token_embd.row_bytes();
  w.output = matrix("output.weight", hidden(), vocab);
  w.output_norm = vector("output_norm.weight", hidden());
  w.output_hc_fn = matrix("output_hc_fn.weight", streams(), n);
  w.output_hc_base = vector("output_hc_base.weight", n);
  w.output_hc_scale = vector("output_hc_scale.weight", {1, ""});
  int32_t most_experts = 0;
  for (int32_t i = 0; i < c_.n_layers; ++i) {
    w.layers.push_back(layer(i));
    most_experts = std::max(most_experts, w.layers.back().n_experts);
  }
  c_.n_experts = most_experts;

  w.bytes_per_token = bytes_per_token_;
  const auto& tensors = file_.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    w.total_bytes += tensors[i].n_bytes;
    if (!used_[i])
      w.ignored.emplace_back(
          tensors[i].name);  // draft layers of any dialect, and what we never heard of
  }
  return w;
}

}  // namespace

ModelWeights ModelWeights::from_gguf(const GgufFile& file, ModelConfig& config) {
  return Loader(file, config).load();
}

}  // namespace grebe
