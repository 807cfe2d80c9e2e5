// The numbers of one DeepSeek V4 model, read from GGUF keys and checked against each other.
//
// Every Flash constant has a default; a present key overrides it; tensor shapes have the last word
// (model/weights.cpp), and a contradiction is an error that names both.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace grebe {

class GgufFile;
struct GgufTensor;

/// Keys are under `deepseek4.`. Defaults are Flash [V4-Flash config.json].
struct ModelConfig {
  std::string name;             // general.name
  int32_t n_layers = 43;        // block_count (less nextn layers that are in the file)
  int32_t hidden_size = 4096;   // embedding_length
  int32_t vocab_size = 129280;  // vocab_size, else the rows of token_embd
  int32_t n_heads = 64;         // attention.head_count
  int32_t head_dim = 512;       // attention.key_length
  int32_t rope_dim = 64;        // rope.dimension_count
  int32_t q_lora_rank = 1024;   // attention.q_lora_rank
  int32_t o_groups = 8;         // attention.output_group_count
  int32_t o_lora_rank = 1024;   // attention.output_lora_rank
  int32_t window_size = 128;    // attention.sliding_window
  std::vector<int32_t>
      compress_ratios;  // attention.compress_ratios: 0, 4 or 128 per layer; n_layers entries here
  int32_t index_n_heads = 64;            // attention.indexer.head_count
  int32_t index_head_dim = 128;          // attention.indexer.key_length
  int32_t index_top_k = 512;             // attention.indexer.top_k
  int32_t hc_mult = 4;                   // hyper_connection.count
  int32_t hc_sinkhorn_iters = 20;        // hyper_connection.sinkhorn_iterations
  float hc_eps = 1e-6f;                  // hyper_connection.epsilon
  float rms_eps = 1e-6f;                 // attention.layer_norm_rms_epsilon
  int32_t n_experts = 256;               // expert_count
  int32_t n_experts_per_token = 6;       // expert_used_count
  int32_t n_shared_experts = 1;          // expert_shared_count; only 1 is supported
  int32_t moe_intermediate_size = 2048;  // expert_feed_forward_length
  float routed_scaling_factor = 1.5f;    // expert_weights_scale
  int32_t n_hash_layers = 3;  // hash_layer_count; a layer is hash-routed iff it has a tid2eid table
  std::vector<float> swiglu_clamp;  // swiglu_clamp_exp, per layer; 0: no clamp
  std::vector<float>
      swiglu_clamp_shared;               // swiglu_clamp_shexp, per layer; default: as swiglu_clamp
  float rope_theta = 10000.f;            // rope.freq_base
  float compress_rope_theta = 160000.f;  // attention.compress_rope_freq_base
  float yarn_factor = 16.f;              // rope.scaling.factor; <= 0 or original_context 0: no YaRN
  int64_t yarn_original_context = 65536;  // rope.scaling.original_context_length
  float yarn_beta_fast = 32.f;            // rope.scaling.yarn_beta_fast
  float yarn_beta_slow = 1.f;             // rope.scaling.yarn_beta_slow
  int64_t max_context = 1048576;          // context_length
  int32_t bos_token = 0;                  // tokenizer.ggml.bos_token_id
  int32_t eos_token = 1;                  // tokenizer.ggml.eos_token_id
  int32_t n_mtp_layers =
      0;  // nextn layers or mtp.* tensors found in the file (recognised, not run)

  /// Throws UnsupportedModel (another architecture, gating, grouping: says what the file is) or
  /// FormatError.
  static ModelConfig from_gguf(const GgufFile& file);
};

/// The tensor of this name, else the one without its `.weight` or `.bias`, which some converters
/// leave off; null if neither.
const GgufTensor* find_model_tensor(const GgufFile& file, std::string_view name);

}  // namespace grebe
