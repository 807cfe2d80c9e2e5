// Tensor names -> typed views into the mapped file, checked against the config.
//
// Matrices stay as they are in the file (Weight). Vectors and small tables (norms, biases, scales,
// ape) are widened to f32 once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/weight.h"
#include "model/config.h"

namespace grebe {

class GgufFile;
using Vec = std::vector<float>;

struct HyperWeights {  // 4.2: hc_attn_* or hc_ffn_*
  Weight fn;           // [(2 + n) n, n * hidden], n = hc_mult
  Vec base;            // [(2 + n) n]
  Vec scale;           // [3]
};

struct CompressorWeights {  // 4.7; empty when the layer has none
  Weight kv, gate;          // [width, hidden]: width = d for ratio 128, 2 d for ratio 4
  Vec ape;                  // [ratio, width]
  Vec norm;                 // [d]
};

struct LayerWeights {
  HyperWeights hc_attn, hc_ffn;
  Vec attn_norm, ffn_norm;  // [hidden]
  Weight q_a, q_b, kv;      // [q_lora, hidden], [heads * head_dim, q_lora], [head_dim, hidden]
  Vec q_a_norm, kv_norm;    // [q_lora], [head_dim]
  Vec sinks;                // [heads]
  Weight o_a, o_b;  // [groups * o_lora, heads * head_dim / groups], [hidden, groups * o_lora]
  CompressorWeights compressor;
  CompressorWeights index_compressor;
  Weight index_q_b;   // [index_heads * index_head_dim, q_lora]
  Weight index_proj;  // [index_heads, hidden]
  Weight router;      // [n_experts, hidden]
  Vec router_bias;    // [n_experts]; empty when hash-routed
  std::vector<int32_t>
      tid2eid;  // [vocab, n_used], values checked to be in [0, n_experts); empty when score-routed
  Weight gate_exps, up_exps, down_exps;
  Weight gate_shexp, up_shexp, down_shexp;
  int32_t n_experts = 0;  // of this layer (pruned files have fewer)
};

struct ModelWeights {
  Weight token_embd;    // [vocab, hidden]
  Weight output;        // [vocab, hidden]
  Vec output_norm;      // [hidden]
  Weight output_hc_fn;  // [n, n * hidden]
  Vec output_hc_base;   // [n]
  Vec output_hc_scale;  // [1]
  std::vector<LayerWeights> layers;

  uint64_t bytes_per_token =
      0;  // weight bytes that one decoded token reads (routed experts: n_used of n_experts)
  uint64_t total_bytes = 0;          // of all tensors in the directory
  std::vector<std::string> ignored;  // tensors of draft layers (mtp.*, nextn.*, dspark.*) and
                                     // others that this engine does not use

  /// Views stay valid as long as `file`. May correct config fields that the file leaves out (vocab,
  /// per-layer experts). Throws UnsupportedModel or FormatError naming tensor, found shape [ne0,
  /// ne1, ...] and expected shape.
  static ModelWeights from_gguf(const GgufFile& file, ModelConfig& config);
};

}  // namespace grebe
