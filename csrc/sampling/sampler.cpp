// Sampling in a few passes over the logits. None of them sorts the vocabulary: a token's weight is
// exp of its scaled logit, so every truncation is a cut in the order of the logits, found by a
// radix search among the tokens that can matter.
//
// Draws must be equal on all machines: weights come from exp.h and sums run in a fixed order (by
// id) or in integers.

#include "sampling/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"
#include "sampling/exp.h"

namespace grebe {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
// Logits per entry of block_max_: 2020 blocks at 129,280 tokens, more than any usual top_k.
constexpr size_t kBlock = 64;
constexpr size_t kChunk = 1024;  // weights per entry of chunk_sums_

std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

void require(bool ok, const char* name, double value, const char* range) {
  if (!ok) {
    throw InvalidArgument(
        std::string("sampling: ") + name + " is " + shown(value) + "; expected " + range);
  }
}

void require_token(int32_t token, int32_t vocab_size, const char* where) {
  if (token < 0 || token >= vocab_size) {
    throw InvalidArgument(
        std::string("sampling: ") + where + " has token id " + std::to_string(token) +
        "; expected 0 to " + std::to_string(vocab_size - 1));
  }
}

// Bits of a float as an integer of the same order. NaN comes out above +inf or below -inf.
// Integers, because the compiler may not vectorise comparisons of floats.
int32_t order_key(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  return bits ^ ((bits >> 31) & INT32_MAX);
}
float from_order_key(int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & INT32_MAX)); }

// A changed logit stays finite (or -inf): a bias of 1e300 means "always", not a fault.
float narrowed(double x) {
  return static_cast<float>(
      x == -std::numeric_limits<double>::infinity() ? x : std::clamp<double>(x, -FLT_MAX, FLT_MAX));
}

auto better_in(std::span<const float> x) {
  return [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
}

// Of the shortest row of best tokens whose masses add up to `target` the last; the worst token when
// all fall short. `ids` ascend and are used up. A radix search over the logits' bits, highest
// first: three passes over what is still undecided, and integer sums, so neither the cost nor the
// result depends on how the logits are distributed or ordered.
template <class Mass>
int32_t last_kept(std::span<const float> x, std::vector<int32_t>& ids, uint64_t target, Mass mass) {
  constexpr int kDigit = 11;
  constexpr uint32_t kDigits = 1 << kDigit;
  uint64_t before = 0;  // mass of tokens that are better than all of `ids`
  for (int shift = 2 * kDigit; shift >= 0; shift -= kDigit) {
    const auto digit = [&](int32_t id) {
      const auto key =
          static_cast<uint32_t>(order_key(x[id] + 0.0f)) ^ 0x80000000u;  // + 0 makes -0 equal to 0
      return key >> shift & (kDigits - 1);
    };
    std::array<uint64_t, kDigits> sums{};
    uint32_t lowest = kDigits - 1;
    for (int32_t id : ids) {
      const uint32_t d = digit(id);
      sums[d] += mass(id);
      lowest = std::min(lowest, d);
    }
    uint32_t chosen = kDigits - 1;
    for (; chosen > lowest && before + sums[chosen] < target; --chosen) before += sums[chosen];
    std::erase_if(ids, [&](int32_t id) { return digit(id) != chosen; });
  }
  // Equal logits are left: the lowest id is the best.
  size_t i = 0;
  while (i + 1 < ids.size() && (before += mass(ids[i])) < target) ++i;
  return ids[i];
}

uint64_t mix(uint64_t z) {  // the finalizer of SplitMix64 [Steele 2014]
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

// The n-th number in [0, 1) of the stream of `seed`.
double uniform(uint64_t seed, uint64_t n) {
  constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;
  return static_cast<double>(mix(mix(seed + kGamma) + (n + 1) * kGamma) >> 11) * 0x1p-53;
}

}  // namespace

Sampler::Sampler(SamplingParams params, int32_t vocab_size)
    : params_(std::move(params)), vocab_size_(vocab_size), n_draws_(params_.first_draw) {
  const SamplingParams& p = params_;
  require(vocab_size > 0, "vocab_size", vocab_size, "vocab_size > 0");
  require(
      std::isfinite(p.temperature) && p.temperature >= 0,
      "temperature",
      p.temperature,
      "temperature >= 0, finite");
  require(p.top_k >= 0, "top_k", static_cast<double>(p.top_k), "top_k >= 0 (0: off)");
  require(p.top_p > 0 && p.top_p <= 1, "top_p", p.top_p, "0 < top_p <= 1");
  require(p.min_p >= 0 && p.min_p < 1, "min_p", p.min_p, "0 <= min_p < 1");
  require(
      std::isfinite(p.repetition_penalty) && p.repetition_penalty > 0,
      "repetition_penalty",
      p.repetition_penalty,
      "repetition_penalty > 0, finite");
  require(
      std::isfinite(p.presence_penalty), "presence_penalty", p.presence_penalty, "a finite number");
  require(
      std::isfinite(p.frequency_penalty),
      "frequency_penalty",
      p.frequency_penalty,
      "a finite number");
  require(
      p.top_logprobs >= 0 && p.top_logprobs <= 1000,
      "top_logprobs",
      p.top_logprobs,
      "0 <= top_logprobs <= 1000");
  for (const auto& [token, bias] : p.logit_bias) {
    require_token(token, vocab_size, "logit_bias");
    require(std::isfinite(bias), "logit_bias", bias, "finite numbers");
  }
  if (p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0) {
    is_seen_.resize(vocab_size);
    output_count_.resize(vocab_size);
  }
}

void Sampler::observe_prompt(std::span<const int32_t> tokens) {
  for (int32_t token : tokens) require_token(token, vocab_size_, "the prompt");
  for (int32_t token : tokens) count(token, /*in_output=*/false);
}

void Sampler::count(int32_t token, bool in_output) {
  if (is_seen_.empty()) return;
  if (!is_seen_[token]) seen_.push_back(token);
  is_seen_[token] = 1;
  output_count_[token] += in_output;
}

// Fills block_max_ and max_; refuses logits that a sound model cannot give.
void Sampler::scan(std::span<const float> x) {
  block_max_.clear();
  int32_t highest = INT32_MIN, lowest = INT32_MAX;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, x.size());
    int32_t block_highest = INT32_MIN;
    for (size_t i = begin; i < end; ++i) {
      const int32_t key = order_key(x[i]);
      block_highest = key > block_highest ? key : block_highest;
      lowest = key < lowest ? key : lowest;
    }
    highest = std::max(highest, block_highest);
    block_max_.push_back(from_order_key(block_highest));
  }
  max_ = from_order_key(highest);
  if (highest >= order_key(-kMinusInf) || lowest < order_key(kMinusInf)) {
    const auto bad = std::find_if(x.begin(), x.end(), [](float v) { return !(v < -kMinusInf); });
    throw BackendError(
        "sampling: the logit of token " + std::to_string(bad - x.begin()) + " is " + shown(*bad) +
            "; expected a number or -inf",
        "sample");
  }
}

// work_ = logits with mask, bias and penalties.
void Sampler::adjust(std::span<const float> logits, std::span<const uint32_t> mask) {
  work_.assign(logits.begin(), logits.end());
  if (!mask.empty()) {
    bool any = false;
    for (size_t begin = 0; begin < work_.size(); begin += 32) {
      const size_t n = std::min<size_t>(32, work_.size() - begin);
      const uint32_t in_range = n == 32 ? UINT32_MAX : (uint32_t{1} << n) - 1;
      const uint32_t allowed = mask[begin / 32] & in_range;
      any |= allowed != 0;
      if (allowed == in_range) continue;
      for (size_t k = 0; k < n; ++k) {
        if (!(allowed >> k & 1)) work_[begin + k] = kMinusInf;
      }
    }
    if (!any) throw InvalidArgument("sampling: the mask allows no token");
  }
  for (const auto& [token, bias] : params_.logit_bias) work_[token] = narrowed(work_[token] + bias);
  for (int32_t token : seen_) {
    double x = work_[token];
    x = x > 0 ? x / params_.repetition_penalty : x * params_.repetition_penalty;
    if (output_count_[token] > 0) {
      x -= params_.frequency_penalty * output_count_[token] + params_.presence_penalty;
    }
    work_[token] = narrowed(x);
  }
}

// Sum of all weights exp((x - max) * scale); fills chunk_sums_.
double Sampler::weigh(std::span<const float> x, float scale) {
  chunk_sums_.clear();
  double total = 0;
  for (size_t begin = 0; begin < x.size(); begin += kChunk) {
    chunk_sums_.push_back(
        sum_exp(x.data() + begin, std::min(kChunk, x.size() - begin), max_, scale, nullptr));
    total += chunk_sums_.back();
  }
  return total;
}

// ids_ = the k best tokens, ascending; fewer when the others are excluded.
void Sampler::select_top(std::span<const float> x, size_t k) {
  // k blocks have a maximum of at least `bound`, so at least k tokens do, and none below it is
  // among the k best.
  float bound = -FLT_MAX;
  if (k < block_max_.size()) {
    bounds_ = block_max_;
    std::nth_element(bounds_.begin(), bounds_.begin() + (k - 1), bounds_.end(), std::greater<>());
    bound = std::max(bound, bounds_[k - 1]);
  }
  ids_.clear();
  for (size_t block = 0; block < block_max_.size(); ++block) {
    if (block_max_[block] < bound) continue;
    const size_t end = std::min((block + 1) * kBlock, x.size());
    for (size_t i = block * kBlock; i < end; ++i) {
      if (x[i] >= bound) ids_.push_back(static_cast<int32_t>(i));
    }
  }
  if (ids_.size() > k) keep_best(x, k, [](int32_t) { return 1; });
}

// Reduces ids_ to its best tokens that together reach `target`.
template <class Mass>
void Sampler::keep_best(std::span<const float> x, uint64_t target, Mass mass) {
  undecided_ = ids_;
  const int32_t last = last_kept(x, undecided_, target, mass);
  std::erase_if(ids_, [&, better = better_in(x)](int32_t id) { return better(last, id); });
}

int32_t Sampler::draw_untruncated(
    std::span<const float> x, float scale, double u, double total) const {
  double rest = u * total;
  size_t chunk = 0;
  while (chunk + 1 < chunk_sums_.size() && rest >= chunk_sums_[chunk]) rest -= chunk_sums_[chunk++];
  // Rounding can leave more than the last chunk's weights: then it is the last token that has one.
  std::array<float, kChunk> weights;
  for (int32_t token = -1;; --chunk, rest = total) {
    const size_t begin = chunk * kChunk, n = std::min(kChunk, x.size() - begin);
    sum_exp(x.data() + begin, n, max_, scale, weights.data());
    for (size_t i = 0; i < n && rest >= 0; ++i) {
      if (weights[i] == 0) continue;
      token = static_cast<int32_t>(begin + i);
      rest -= static_cast<double>(weights[i]);
    }
    if (token >= 0 || chunk == 0) return token;
  }
}

// `sum` is weigh(x, 1), just computed.
int32_t Sampler::draw(std::span<const float> x, double sum) {
  // Bounds keep (x - max) * scale away from inf * 0 for any temperature that a double can hold.
  const auto scale = static_cast<float>(std::clamp(1 / params_.temperature, 1e-30, 1e30));
  const double u = uniform(params_.seed, n_draws_);
  const bool has_top_k = params_.top_k > 0 && params_.top_k < vocab_size_;
  const auto weight = [&](int32_t id) {
    return static_cast<double>(exp_nonpositive((x[id] - max_) * scale));
  };

  double total = 0;
  if (has_top_k) {
    select_top(x, static_cast<size_t>(params_.top_k));
    for (int32_t id : ids_) total += weight(id);
  } else {
    total = scale == 1 ? sum : weigh(x, scale);
    if (params_.top_p == 1 && params_.min_p == 0) return draw_untruncated(x, scale, u, total);
    // Tokens below `floor` together weigh less than the (1 - top_p) that the nucleus leaves out, so
    // they cannot be in it. The factor covers the rounding of exp; what min_p excludes is checked
    // exactly below.
    const double floor = 0.999 * std::max(params_.min_p, (1 - params_.top_p) * total / vocab_size_);
    ids_.clear();
    for (size_t block = 0; block < block_max_.size(); ++block) {
      if (static_cast<double>(exp_nonpositive((block_max_[block] - max_) * scale)) < floor)
        continue;
      const size_t end = std::min((block + 1) * kBlock, x.size());
      for (size_t i = block * kBlock; i < end; ++i) {
        const auto id = static_cast<int32_t>(i);
        if (weight(id) >= floor) ids_.push_back(id);
      }
    }
  }
  if (params_.top_p < 1 && !ids_.empty()) {
    // A weight is at most 1: the sum of all fits 62 bits.
    const double unit = std::ldexp(1.0, 62 - std::bit_width(static_cast<uint32_t>(vocab_size_)));
    const auto target = static_cast<uint64_t>(std::ceil(params_.top_p * total * unit));
    keep_best(x, target, [&](int32_t id) { return static_cast<uint64_t>(weight(id) * unit); });
  }
  if (params_.min_p > 0)
    std::erase_if(ids_, [&](int32_t id) { return weight(id) < params_.min_p; });

  weights_.clear();
  double kept = 0;
  for (int32_t id : ids_) {
    weights_.push_back(weight(id));
    kept += weights_.back();
  }
  double rest = u * kept;
  int32_t token = -1;
  for (size_t i = 0; i < ids_.size() && rest >= 0; ++i) {
    if (weights_[i] == 0) continue;
    token = ids_[i];
    rest -= weights_[i];
  }
  return token;
}

Sample Sampler::sample(std::span<const float> logits, std::span<const uint32_t> mask) {
  const auto vocab_size = static_cast<size_t>(vocab_size_);
  if (logits.size() != vocab_size) {
    throw InvalidArgument(
        "sampling: there are " + std::to_string(logits.size()) + " logits; expected " +
        std::to_string(vocab_size));
  }
  if (!mask.empty() && mask.size() < (vocab_size + 31) / 32) {
    throw InvalidArgument(
        "sampling: the mask has " + std::to_string(mask.size()) + " words; expected at least " +
        std::to_string((vocab_size + 31) / 32));
  }
  scan(logits);
  std::span<const float> x = logits;
  if (!mask.empty() || !params_.logit_bias.empty() || !seen_.empty()) {
    adjust(logits, mask);
    x = work_;
    scan(x);
  }
  if (max_ == kMinusInf) throw BackendError("sampling: every logit is -inf", "sample");

  const double sum = weigh(x, 1);
  const double log_sum = std::log(sum);
  const auto logprob = [&](int32_t id) {
    return static_cast<double>(x[id]) - static_cast<double>(max_) - log_sum;
  };

  Sample result;
  if (params_.temperature == 0) {
    const auto block = std::find(block_max_.begin(), block_max_.end(), max_) - block_max_.begin();
    result.token =
        static_cast<int32_t>(std::find(x.begin() + block * kBlock, x.end(), max_) - x.begin());
  } else {
    result.token = draw(x, sum);
  }
  result.logprob = logprob(result.token);
  if (params_.top_logprobs > 0) {
    select_top(x, std::min(static_cast<size_t>(params_.top_logprobs), vocab_size));
    std::sort(ids_.begin(), ids_.end(), better_in(x));
    for (int32_t id : ids_) result.top.push_back({id, logprob(id)});
  }
  ++n_draws_;
  count(result.token, /*in_output=*/true);
  return result;
}

}  // namespace grebe
