// Sampler.
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <optional>
#include <tuple>

#include "bindings.h"

namespace grebe {
namespace {

namespace nb = nanobind;
using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The sampler with its vocabulary size, which bounds the ids that observe_prompt takes.
struct BoundSampler {
  Sampler sampler;
  int32_t vocab_size;
  bool busy = false;  // changed and looked at under the GIL only

  void check_free() const {
    if (busy) throw InvalidArgument("the sampler is busy: a call in another thread uses it");
  }
};

using Result = std::tuple<int32_t, double, std::vector<std::pair<int32_t, double>>>;

Result sample(BoundSampler& self, const Logits& logits, const std::optional<Mask>& mask) {
  const std::span<const float> x(logits.data(), logits.size());
  const std::span<const uint32_t> bits =
      mask ? std::span(mask->data(), mask->size()) : std::span<const uint32_t>();
  // An empty array is not "no mask": it allows nothing.
  if (mask && bits.empty()) throw InvalidArgument("sampling: the mask has 0 words");
  self.check_free();
  struct Use {
    bool& busy;
    explicit Use(bool& flag) : busy(flag) { busy = true; }
    ~Use() { busy = false; }
  } const use(self.busy);
  const bind::WithoutGil release;
  const Sample sample = self.sampler.sample(x, bits);
  Result result{sample.token, sample.logprob, {}};
  for (const TokenLogprob& entry : sample.top)
    std::get<2>(result).emplace_back(entry.token, entry.logprob);
  return result;
}

}  // namespace
}  // namespace grebe

void bind_sampler(nanobind::module_& m) {
  using namespace grebe;
  using namespace nanobind::literals;
  nb::class_<BoundSampler>(
      m,
      "Sampler",
      "Chooses tokens of one generation: parameters, random state and the counts that penalties "
      "need. Not thread-safe.")
      .def(
          "__init__",
          [](BoundSampler* self,
             double temperature,
             int64_t top_k,
             double top_p,
             double min_p,
             double repetition_penalty,
             double presence_penalty,
             double frequency_penalty,
             const std::optional<std::map<int32_t, double>>& logit_bias,
             uint64_t seed,
             int32_t top_logprobs,
             uint64_t first_draw,
             int32_t vocab_size) {
            SamplingParams params{
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                presence_penalty,
                frequency_penalty,
                {},
                seed,
                top_logprobs,
                first_draw};
            if (logit_bias) params.logit_bias.assign(logit_bias->begin(), logit_bias->end());
            new (self) BoundSampler{Sampler(std::move(params), vocab_size), vocab_size};
          },
          nb::kw_only(),
          "temperature"_a = 0.0,
          "top_k"_a = 0,
          "top_p"_a = 1.0,
          "min_p"_a = 0.0,
          "repetition_penalty"_a = 1.0,
          "presence_penalty"_a = 0.0,
          "frequency_penalty"_a = 0.0,
          "logit_bias"_a = nb::none(),
          "seed"_a = 0,
          "top_logprobs"_a = 0,
          "first_draw"_a = 0,
          "vocab_size"_a,
          "Args:\n"
          "    temperature: >= 0; 0 is the exact argmax, the lowest id on ties.\n"
          "    top_k: keep the k best tokens; 0 is off.\n"
          "    top_p: keep the best tokens that together reach this probability, in (0, 1].\n"
          "    min_p: keep tokens of at least this share of the best one's probability, in [0, "
          "1).\n"
          "    repetition_penalty: > 0; divides positive, multiplies negative logits of tokens in "
          "prompt or output.\n"
          "    presence_penalty: subtracted once from tokens in the output.\n"
          "    frequency_penalty: subtracted from tokens in the output for every occurrence.\n"
          "    logit_bias: added to the logits, by token id.\n"
          "    seed: equal seeds and logits give equal tokens on every machine.\n"
          "    top_logprobs: how many of the best tokens sample() reports, 0 to 1000.\n"
          "    first_draw: number of the first draw in the stream of the seed.\n"
          "    vocab_size: number of logits.\n\n"
          "Raises:\n"
          "    InvalidArgumentError: names the parameter, its value and its range.")
      .def(
          "observe_prompt",
          [](BoundSampler& self, nb::object ids) {
            const std::vector<int32_t> tokens = bind::to_tokens(ids, self.vocab_size);
            self.check_free();
            self.sampler.observe_prompt(tokens);
          },
          "ids"_a,
          nb::sig("def observe_prompt(self, ids: typing.Any) -> None"),
          "Tell the sampler of prompt tokens, for the repetition penalty.")
      .def(
          "sample",
          &sample,
          "logits"_a.noconvert(),
          "mask"_a.noconvert() = nb::none(),
          "Choose the next token and count it.\n\n"
          "Args:\n"
          "    logits: f32[vocab_size]; -inf excludes a token.\n"
          "    mask: u32[(vocab_size + 31) // 32 or more], bit i of the whole allows token i; None "
          "allows all.\n\n"
          "Returns:\n"
          "    (token, log-probability, [(token, log-probability), ...] of the best top_logprobs "
          "tokens), the\n"
          "    probabilities after bias and penalties, before temperature and truncation.\n\n"
          "Raises:\n"
          "    BackendError: a logit is NaN or +inf, or all are -inf.\n"
          "    InvalidArgumentError: wrong sizes, or a mask that allows nothing.");
}
