// From logits to a token: penalties, bias, mask, temperature, top-k, top-p, min-p, seeded draw.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace grebe {

struct SamplingParams {
  double temperature = 0.0;  ///< 0: greedy, the exact argmax, lowest id on ties
  int64_t top_k = 0;         ///< 0: off
  double top_p = 1.0;        ///< (0, 1]
  double min_p = 0.0;        ///< [0, 1)
  double repetition_penalty = 1.0;  ///< > 0; divides positive and multiplies negative logits of tokens seen in prompt or output
  double presence_penalty = 0.0;    ///< subtracted once from tokens seen in the output
  double frequency_penalty = 0.0;   ///< subtracted per occurrence in the output
  std::vector<std::pair<int32_t, double>> logit_bias;
  uint64_t seed = 0;
  int32_t top_logprobs = 0;  ///< 0..1000
};

struct TokenLogprob {
  int32_t token;
  double logprob;
};

struct Sample {
  int32_t token;
  double logprob;  ///< of the chosen token under softmax(logits) before temperature and truncation, after bias and penalties
  std::vector<TokenLogprob> top;  ///< descending, lowest id first on ties
};

/// One generation's sampler: parameters, random state and the counts that penalties need. Not thread-safe.
class Sampler {
 public:
  /// Throws InvalidArgument naming the parameter, its value and its range. vocab_size bounds ids in logit_bias.
  Sampler(SamplingParams params, int32_t vocab_size);

  /// Tells the sampler of prompt tokens (for the repetition penalty).
  void observe_prompt(std::span<const int32_t> tokens);
  /// Chooses the next token from f32[vocab] and counts it. mask: u32 bit set, bit set = allowed, empty = all allowed
  /// (at least (vocab + 31) / 32 words). Throws BackendError when a logit is NaN, InvalidArgument when the mask allows nothing.
  /// Seeded draws are equal across runs and platforms: a counter-based generator keyed by (seed, number of draws).
  Sample sample(std::span<const float> logits, std::span<const uint32_t> mask);

 private:
  SamplingParams params_;
  int32_t vocab_size_;
  uint64_t n_draws_ = 0;
  std::vector<uint8_t> in_prompt_;
  std::vector<int32_t> output_count_;
  std::vector<float> work_;
  std::vector<int32_t> order_;
};

}  // namespace grebe
