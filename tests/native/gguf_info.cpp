// Prints what the loader made of a GGUF file, one JSON document: used by tests/unit/test_gguf.py,
// handy by hand.
//
//   gguf_info FILE      exit 0 and the numbers, or exit 3 and {"error": class, "message": ...}
#include <chrono>
#include <cstdio>
#include <string>

#include "core/error.h"
#include "io/gguf.h"
#include "model/config.h"
#include "model/fingerprint.h"
#include "model/weights.h"

using namespace grebe;

namespace {

std::string escaped(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

template <class T>
std::string list(const std::vector<T>& values) {
  std::string out = "[";
  for (const auto& v : values) {
    if constexpr (std::is_same_v<T, std::string>)
      out += escaped(v) + ",";
    else
      out += std::to_string(v) + ",";
  }
  if (out.size() > 1) out.pop_back();
  return out + "]";
}

double ms_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
      .count();
}

int fail(const char* kind, const Error& e) {
  std::printf("{\"error\": \"%s\", \"message\": %s}\n", kind, escaped(e.what()).c_str());
  return 3;
}

void print(const GgufFile& file, const ModelConfig& c, const ModelWeights& w, double load_ms) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string fingerprint = model_fingerprint(file, c);
  const double fingerprint_ms = ms_since(begin);
  std::printf(
      "{\"path\": %s, \"version\": %u, \"shards\": %d, \"file_bytes\": %llu, \"n_tensors\": %zu, "
      "\"n_keys\": %zu,\n",
      escaped(file.path()).c_str(),
      file.version(),
      file.n_shards(),
      static_cast<unsigned long long>(file.file_bytes()),
      file.tensors().size(),
      file.keys().size());
  std::printf(" \"name\": %s", escaped(c.name).c_str());
#define INT(field) std::printf(", \"" #field "\": %lld", static_cast<long long>(c.field))
#define FLOAT(field) std::printf(", \"" #field "\": %.9g", static_cast<double>(c.field))
  INT(n_layers), INT(hidden_size), INT(vocab_size), INT(n_heads), INT(head_dim), INT(rope_dim),
      INT(q_lora_rank), INT(o_groups);
  INT(o_lora_rank), INT(window_size), INT(index_n_heads), INT(index_head_dim), INT(index_top_k),
      INT(hc_mult), INT(hc_sinkhorn_iters);
  INT(n_experts), INT(n_experts_per_token), INT(moe_intermediate_size), INT(n_hash_layers),
      INT(yarn_original_context);
  INT(max_context), INT(bos_token), INT(eos_token), INT(n_mtp_layers);
  FLOAT(hc_eps), FLOAT(rms_eps), FLOAT(routed_scaling_factor), FLOAT(rope_theta),
      FLOAT(compress_rope_theta), FLOAT(yarn_factor);
  FLOAT(yarn_beta_fast), FLOAT(yarn_beta_slow);
#undef INT
#undef FLOAT
  std::vector<int> layer_experts;
  for (const LayerWeights& l : w.layers) layer_experts.push_back(l.n_experts);
  std::printf(
      ",\n \"compress_ratios\": %s, \"swiglu_clamp\": %s, \"swiglu_clamp_shared\": %s, "
      "\"layer_experts\": %s,\n",
      list(c.compress_ratios).c_str(),
      list(c.swiglu_clamp).c_str(),
      list(c.swiglu_clamp_shared).c_str(),
      list(layer_experts).c_str());
  std::printf(
      " \"types\": {\"token_embd\": \"%s\", \"output\": \"%s\", \"q_a\": \"%s\", \"gate_exps\": "
      "\"%s\", \"down_exps\": \"%s\"},\n",
      dtype_name(w.token_embd.dtype).c_str(),
      dtype_name(w.output.dtype).c_str(),
      dtype_name(w.layers[0].q_a.dtype).c_str(),
      dtype_name(w.layers[0].gate_exps.dtype).c_str(),
      dtype_name(w.layers[0].down_exps.dtype).c_str());
  std::printf(
      " \"bytes_per_token\": %llu, \"total_bytes\": %llu, \"ignored\": %s, \"fingerprint\": "
      "\"%s\", \"load_ms\": %.3f, \"fingerprint_ms\": %.3f}\n",
      static_cast<unsigned long long>(w.bytes_per_token),
      static_cast<unsigned long long>(w.total_bytes),
      list(w.ignored).c_str(),
      fingerprint.c_str(),
      load_ms,
      fingerprint_ms);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: gguf_info FILE\n"), 2;
  try {
    const auto begin = std::chrono::steady_clock::now();
    const auto file = GgufFile::open(argv[1]);
    ModelConfig config = ModelConfig::from_gguf(*file);
    const ModelWeights weights = ModelWeights::from_gguf(*file, config);
    print(*file, config, weights, ms_since(begin));
    return 0;
  } catch (const FormatError& e) {
    return fail("FormatError", e);
  } catch (const UnsupportedModel& e) {
    return fail("UnsupportedModel", e);
  } catch (const IoError& e) {
    return fail("IoError", e);
  } catch (const Error& e) {
    return fail("Error", e);
  }
}
