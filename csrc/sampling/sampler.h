// From logits to a token: penalties, bias, mask, temperature, top-k, top-p, min-p, seeded draw.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace grebe {

struct SamplingParams {
  double temperature = 0.0;         ///< 0: greedy, the exact argmax, lowest id on ties
  int64_t top_k = 0;                ///< 0: off
  double top_p = 1.0;               ///< (0, 1]
  double min_p = 0.0;               ///< [0, 1)
  double repetition_penalty = 1.0;  ///< > 0; divides positive and multiplies negative logits of
                                    ///< tokens seen in prompt or output
  double presence_penalty = 0.0;    ///< subtracted once from tokens seen in the output
  double frequency_penalty = 0.0;   ///< subtracted per occurrence in the output
  std::vector<std::pair<int32_t, double>> logit_bias;
  uint64_t seed = 0;
  int32_t top_logprobs = 0;  ///< 0..1000
  /// Number of the first draw: a text that is continued goes on in the stream of its seed.
  uint64_t first_draw = 0;
};

struct TokenLogprob {
  int32_t token;
  double logprob;
};

struct Sample {
  int32_t token;
  double logprob;  ///< of the chosen token under softmax(logits) before temperature and truncation,
                   ///< after bias and penalties
  std::vector<TokenLogprob> top;  ///< descending, lowest id first on ties
};

/// One generation's sampler: parameters, random state and the counts that penalties need. Not
/// thread-safe.
///
/// Order: mask, logit_bias, repetition, frequency and presence penalty on the logits; their
/// log-softmax is what is reported; then temperature, top_k, top_p, min_p and the draw. Each
/// truncation keeps the best tokens (by logit, then lowest id).
class Sampler {
 public:
  /// Throws InvalidArgument naming the parameter, its value and its range. vocab_size bounds ids in
  /// logit_bias.
  Sampler(SamplingParams params, int32_t vocab_size);

  /// Tells the sampler of prompt tokens (for the repetition penalty). Throws InvalidArgument for an
  /// id out of range.
  void observe_prompt(std::span<const int32_t> tokens);
  /// Chooses the next token from f32[vocab] and counts it. mask: u32 bit set, bit set = allowed,
  /// empty = all allowed (at least (vocab + 31) / 32 words). Throws BackendError when a logit is
  /// NaN or +inf or when all are -inf, InvalidArgument when the mask allows nothing; the sampler is
  /// then as before the call. -inf excludes a token; excluded tokens never appear in `top`, which
  /// may therefore be shorter than asked. Seeded draws are equal across runs and platforms: a
  /// counter-based generator keyed by (seed, number of draws).
  Sample sample(std::span<const float> logits, std::span<const uint32_t> mask);

 private:
  void count(int32_t token, bool in_output);
  void scan(std::span<const float> x);
  void adjust(std::span<const float> logits, std::span<const uint32_t> mask);
  double weigh(std::span<const float> x, float scale);
  void select_top(std::span<const float> x, size_t k);
  template <class Mass>
  void keep_best(std::span<const float> x, uint64_t target, Mass mass);
  int32_t draw(std::span<const float> x, double sum);
  int32_t draw_untruncated(std::span<const float> x, float scale, double u, double total) const;

  SamplingParams params_;
  int32_t vocab_size_;
  uint64_t n_draws_ = 0;
  // Only with penalties: occurrences by token, and the tokens that occurred at all.
  std::vector<uint8_t> is_seen_;
  std::vector<int32_t> output_count_;
  std::vector<int32_t> seen_;
  // Scratch of one call.
  float max_ = 0;
  std::vector<float> work_;       // adjusted logits
  std::vector<float> block_max_;  // by block of kBlock logits
  std::vector<float> bounds_;
  std::vector<double> chunk_sums_;  // by chunk of kChunk weights
  std::vector<int32_t> ids_;        // candidates, ascending
  std::vector<double> weights_;     // of ids_
  std::vector<int32_t> undecided_;
};

}  // namespace grebe
