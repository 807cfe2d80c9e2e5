#include "model/fingerprint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <vector>

#include "io/gguf.h"
#include "model/config.h"

namespace grebe {

namespace {

constexpr uint64_t kWholeBytes =
    16384;  // up to here a tensor is hashed whole: every norm and bias of Flash
constexpr uint64_t kSampleBytes = 4096;
constexpr uint64_t kSamples = 3;  // first, middle and last bytes of a larger one

class Sha256 {  // [FIPS 180-4]
 public:
  void add(const void* data, size_t n) {
    const auto* p = static_cast<const uint8_t*>(data);
    n_bytes_ += n;
    while (n > 0) {
      const size_t m = std::min(n, sizeof block_ - used_);
      std::memcpy(block_ + used_, p, m);
      used_ += m;
      p += m;
      n -= m;
      if (used_ == sizeof block_) compress();
    }
  }

  std::string hex() {
    const uint64_t n_bits = n_bytes_ * 8;
    const uint8_t one = 0x80, zero = 0;
    add(&one, 1);
    while (used_ != 56) add(&zero, 1);
    for (int i = 0; i < 8; ++i) block_[56 + i] = static_cast<uint8_t>(n_bits >> (56 - 8 * i));
    compress();
    std::string out;
    for (const uint32_t word : state_) {
      char digits[9];
      std::snprintf(digits, sizeof digits, "%08x", word);
      out += digits;
    }
    return out;
  }

 private:
  std::array<uint32_t, 8> state_ = {
      0x6a09e667,
      0xbb67ae85,
      0x3c6ef372,
      0xa54ff53a,
      0x510e527f,
      0x9b05688c,
      0x1f83d9ab,
      0x5be0cd19};
  uint8_t block_[64] = {};
  size_t used_ = 0;
  uint64_t n_bytes_ = 0;

  void compress() {
    // clang-format off
    static constexpr uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    // clang-format on
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      w[i] = uint32_t{block_[4 * i]} << 24 | uint32_t{block_[4 * i + 1]} << 16 |
             uint32_t{block_[4 * i + 2]} << 8 | block_[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; ++i) {
      const uint32_t t1 = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                          ((e & f) ^ (~e & g)) + k[i] + w[i];
      const uint32_t t2 =
          (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t next[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state_[i] += next[i];
    used_ = 0;
  }
};

// The numbers that decide what the same tokens compute. To add a field: append it, which renames
// every model.
std::string config_text(const ModelConfig& c) {
  std::string out = "grebe-model-1\n";
  const auto add = [&](const char* name, double value) {  // every number here is exact as a double
    char line[96];
    std::snprintf(line, sizeof line, "%s %a\n", name, value);
    out += line;
  };
  add("n_layers", c.n_layers), add("hidden_size", c.hidden_size), add("vocab_size", c.vocab_size);
  add("n_heads", c.n_heads), add("head_dim", c.head_dim), add("rope_dim", c.rope_dim);
  add("q_lora_rank", c.q_lora_rank), add("o_groups", c.o_groups), add("o_lora_rank", c.o_lora_rank);
  add("window_size", c.window_size), add("index_n_heads", c.index_n_heads),
      add("index_head_dim", c.index_head_dim);
  add("index_top_k", c.index_top_k), add("hc_mult", c.hc_mult),
      add("hc_sinkhorn_iters", c.hc_sinkhorn_iters);
  add("hc_eps", c.hc_eps), add("rms_eps", c.rms_eps),
      add("n_experts_per_token", c.n_experts_per_token);
  add("moe_intermediate_size", c.moe_intermediate_size),
      add("routed_scaling_factor", c.routed_scaling_factor);
  add("rope_theta", c.rope_theta), add("compress_rope_theta", c.compress_rope_theta),
      add("yarn_factor", c.yarn_factor);
  add("yarn_original_context", static_cast<double>(c.yarn_original_context));
  add("yarn_beta_fast", c.yarn_beta_fast), add("yarn_beta_slow", c.yarn_beta_slow);
  for (const int32_t ratio : c.compress_ratios) add("compress_ratio", ratio);
  for (const float clamp : c.swiglu_clamp) add("swiglu_clamp", clamp);
  for (const float clamp : c.swiglu_clamp_shared) add("swiglu_clamp_shared", clamp);
  return out;
}

// Calls visit(begin, n_bytes) for the sampled pieces of a tensor, positions relative to the tensor
// so that a repacked file gives the same bytes.
template <class Visit>
void for_each_piece(const GgufTensor& t, Visit visit) {
  if (t.n_bytes <= kWholeBytes) {
    visit(t.data, t.n_bytes);
    return;
  }
  for (uint64_t i = 0; i < kSamples; ++i)
    visit(t.data + (t.n_bytes - kSampleBytes) / (kSamples - 1) * i, kSampleBytes);
}

}  // namespace

std::string model_fingerprint(const GgufFile& file, const ModelConfig& config) {
  std::vector<const GgufTensor*> tensors;
  for (const GgufTensor& t : file.tensors()) {
    if (t.n_bytes)
      tensors.push_back(&t);  // a type that nobody knows has no bytes here; only ignored tensors do
  }
  std::sort(tensors.begin(), tensors.end(), [](const GgufTensor* a, const GgufTensor* b) {
    return a->name < b->name;
  });
  // All reads are asked for before the first is waited for: on a cold disk that is the difference
  // between one burst and a few thousand round trips.
  for (const GgufTensor* t : tensors)
    for_each_piece(*t, [](const uint8_t* p, uint64_t n) { prefetch(p, n); });

  Sha256 hash;
  const std::string numbers = config_text(config);
  hash.add(numbers.data(), numbers.size());
  for (const GgufTensor* t : tensors) {
    const std::string head =
        std::string(t->name) + " " + std::to_string(t->type) + " " + t->shape() + "\n";
    hash.add(head.data(), head.size());
    for_each_piece(*t, [&](const uint8_t* p, uint64_t n) { hash.add(p, n); });
  }
  return hash.hex();
}

}  // namespace grebe
