#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "grebe.h"
#include "model/fingerprint.h"
#include "model/model_impl.h"

namespace grebe {
namespace {

void check_options(const LoadOptions& o) {
  if (o.kv_rounding != "official" && o.kv_rounding != "off") {
    throw InvalidArgument("kv_rounding is '" + o.kv_rounding + "'; expected 'official' or 'off'");
  }
  if (o.kernels != "fast" && o.kernels != "exact") {
    throw InvalidArgument("kernels is '" + o.kernels + "'; expected 'fast' or 'exact'");
  }
  if (o.n_threads < 0 || o.n_threads > 1024) {
    throw InvalidArgument(
        "n_threads is " + std::to_string(o.n_threads) +
        "; expected 1..1024, or 0 for all usable cores");
  }
  if (o.prefill_chunk < 1 || o.prefill_chunk > 4096) {
    throw InvalidArgument(
        "prefill_chunk is " + std::to_string(o.prefill_chunk) + "; expected 1..4096");
  }
  if (!o.observe.empty() && o.observe != "inputs" && o.observe != "hidden") {
    throw InvalidArgument("observe is '" + o.observe + "'; expected 'inputs' or 'hidden'");
  }
}

}  // namespace

void Model::Impl::require_own_process() const {
  if (pid == getpid()) return;
  throw Error(
      "the model was loaded before this process was forked and its threads stayed in the parent; "
      "load it again here");
}

// Raised when a change of the engine changes the numbers that it computes: what older versions have
// stored is then not found any more.
constexpr int kNumericsEpoch = 1;

Model::Model() : impl_(std::make_unique<Impl>()) {}
Model::~Model() {
  // A forked child cannot end what the parent's threads and devices hold.
  if (impl_ && impl_->backend && impl_->pid != getpid()) (void)impl_->backend.release();
}

std::shared_ptr<Model> Model::load(const std::string& path, const LoadOptions& options) {
  check_options(options);
  std::shared_ptr<Model> model(new Model());
  Impl& m = *model->impl_;
  m.options = options;
  m.pid = getpid();
  m.file = GgufFile::open(path);
  m.config = ModelConfig::from_gguf(*m.file);
  m.weights = ModelWeights::from_gguf(*m.file, m.config);
  if (m.file->find_key("tokenizer.ggml.tokens")) {
    m.tokenizer = Tokenizer::from_gguf(*m.file);
    const std::string found = std::to_string(m.tokenizer->vocab_size()),
                      expected = std::to_string(m.config.vocab_size);
    if (found != expected) {
      throw UnsupportedModel(
          path + ": tokenizer.ggml.tokens has " + found + " entries; token_embd.weight has " +
              expected + " rows",
          "tokenizer.ggml.tokens",
          found,
          expected);
    }
  }
  const bool exact = options.kernels == "exact";
  m.backend = make_backend(options.backend, {options.n_threads, exact, options.isa});
  if (!options.observe.empty()) {
    using What = Observer::What;
    const What what = options.observe == "inputs" ? What::kInputs : What::kHidden;
    auto observer = std::make_unique<Observer>(std::move(m.backend), what);
    m.observer = observer.get();
    m.backend = std::move(observer);
  }
  m.options.backend = m.backend->name();
  std::vector<std::span<const uint8_t>> mappings;
  for (int i = 0; i < m.file->n_shards(); i++) {
    mappings.emplace_back(m.file->shard(i).data(), m.file->shard(i).size());
  }
  uint64_t longest = 0;
  for (const GgufTensor& t : m.file->tensors()) longest = std::max(longest, t.n_bytes);
  m.backend->map_weights(mappings, longest);
  m.options.n_threads = options.n_threads > 0 ? options.n_threads : usable_cores();
  if (m.options.backend == "cpu") m.options.isa = isa_name(choose_isa(options.isa));
  m.layout = std::make_unique<KvLayout>(m.config, options.kv_rounding == "official", exact);
  m.forward = std::make_unique<Forward>(*m.backend, m.config, m.weights, *m.layout);
  m.fingerprint = model_fingerprint(*m.file, m.config);
  return model;
}

const GgufFile& Model::file() const { return *impl_->file; }
const ModelConfig& Model::config() const { return impl_->config; }
const ModelWeights& Model::weights() const { return impl_->weights; }
const Tokenizer* Model::tokenizer() const { return impl_->tokenizer.get(); }
const LoadOptions& Model::options() const { return impl_->options; }
const std::string& Model::fingerprint() const { return impl_->fingerprint; }

std::string Model::device() const { return impl_->backend->description(); }
std::string Model::trace() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->backend->trace();
}

std::vector<InputStats> Model::take_inputs() {
  std::lock_guard lock(impl_->mutex);
  if (impl_->options.observe != "inputs") throw InvalidArgument("inputs are not observed");
  return impl_->observer->take_inputs();
}

std::vector<std::vector<float>> Model::take_hidden() {
  std::lock_guard lock(impl_->mutex);
  if (impl_->options.observe != "hidden") throw InvalidArgument("hidden states are not observed");
  return impl_->observer->take_hidden();
}

uint64_t Model::scratch_bytes() const { return impl_->scratch_bytes; }

RootInfo Model::Impl::root() const {
  RootInfo root;
  root.fingerprint = fingerprint;
  root.name = config.name;
  root.numerics = options.backend + " " + options.kernels + " " + options.kv_rounding + " " +
                  std::to_string(kNumericsEpoch);
  root.id = root_id(root.numerics);
  return root;
}

Digest Model::Impl::root_id(const std::string& numerics) const {
  const std::string text = "grebe kv 1\n" + fingerprint + "\n" + numerics;
  return Blake3().update(text.data(), text.size()).finish();
}

std::shared_ptr<KvCache> Model::open_cache(const CacheOptions& o) {
  impl_->require_own_process();
  KvCache::Options options;
  options.store = {o.path, o.budget_bytes, o.daily_write_bytes, o.read_only, o.storage};
  options.ram_bytes = o.ram_bytes;
  return std::make_shared<KvCache>(
      shared_from_this(), *impl_->backend, *impl_->layout, impl_->root(), options);
}

void Model::trim_cache(KvCache& cache, uint64_t ram_bytes) {
  std::lock_guard lock(impl_->mutex);
  cache.trim(ram_bytes);
}

std::shared_ptr<Session> Model::session(int64_t n_ctx, const std::shared_ptr<KvCache>& cache) {
  const int64_t limit = impl_->config.max_context;
  if (n_ctx < 0 || n_ctx > limit) {
    throw InvalidArgument(
        "n_ctx is " + std::to_string(n_ctx) + "; expected 1.." + std::to_string(limit) +
        " (the model's context), or none for all of it");
  }
  std::shared_ptr<Session> s(new Session());
  s->impl_ = std::make_unique<Session::Impl>(
      shared_from_this(), n_ctx ? n_ctx : limit, KvState(*impl_->backend, *impl_->layout));
  if (cache) {
    if (cache->root() != impl_->root().id) {
      throw InvalidArgument("the cache was opened by another model; use one of model.open_cache()");
    }
    s->impl_->cache = std::make_unique<SessionCache>(cache);
    s->impl_->kv.set_pager(cache->pager());
  }
  return s;
}

void Model::step(std::span<const StepInput> inputs, std::vector<float>& logits) {
  std::vector<Use> held;
  for (size_t i = 0; i < inputs.size(); i++) {
    Session* session = inputs[i].session;
    if (!session || session->model().get() != this) {
      throw InvalidArgument("step: input " + std::to_string(i) + " is not a session of this model");
    }
    for (size_t j = 0; j < i; j++) {
      if (inputs[j].session == session) {
        throw InvalidArgument(
            "step: inputs " + std::to_string(j) + " and " + std::to_string(i) +
            " are the same session");
      }
    }
    held.push_back(session->impl_->use());
    if (inputs[i].tokens.empty()) {
      throw InvalidArgument("step: input " + std::to_string(i) + " has no tokens");
    }
    session->impl_->check_tokens(inputs[i].tokens);
    session->impl_->check_room(session->pos() + static_cast<int64_t>(inputs[i].tokens.size()));
  }
  if (!inputs.empty()) run_step(inputs, logits);
}

namespace {

int64_t rows_of(const StepInput& in) {
  switch (in.logits) {
    case StepInput::Logits::kNone:
      return 0;
    case StepInput::Logits::kLast:
      return 1;
    default:
      return static_cast<int64_t>(in.tokens.size());
  }
}

// Positions in (begin, end] that get a checkpoint: the last few multiples of 128, every eighth
// before them, and the marks.
std::vector<int64_t> checkpoint_positions(
    int64_t begin, int64_t end, std::span<const int64_t> marks) {
  std::vector<int64_t> out;
  const int64_t recent = end - kCheckpointsPerStep * kCheckpointTokens;
  for (int64_t pos = begin / kCheckpointTokens * kCheckpointTokens + kCheckpointTokens; pos <= end;
       pos += kCheckpointTokens) {
    if (pos > recent || pos % (8 * kCheckpointTokens) == 0 ||
        std::find(marks.begin(), marks.end(), pos) != marks.end()) {
      out.push_back(pos);
    }
  }
  return out;
}

// Asks progress.layer now and then: it may take the interpreter's lock.
Backend::Interrupted interruption(const Progress& progress) {
  if (!progress.layer) return {};
  using Clock = std::chrono::steady_clock;
  return [&progress, last = Clock::now()]() mutable {
    const Clock::time_point now = Clock::now();
    if (now - last < std::chrono::milliseconds(50)) return false;
    last = now;
    return !progress.layer();
  };
}

}  // namespace

void Model::run_step(
    std::span<const StepInput> inputs, std::vector<float>& logits, const Progress& progress) {
  for (;;) {
    try {
      return try_step(inputs, logits, progress);
    } catch (const RowsLost& lost) {
      const auto at = std::find_if(inputs.begin(), inputs.end(), [&](const StepInput& in) {
        return &in.session->impl_->kv == lost.kv;
      });
      GREBE_ASSERT(at != inputs.end());
      at->session->recover(lost, progress);
    }
  }
}

void Model::try_step(
    std::span<const StepInput> inputs, std::vector<float>& logits, const Progress& progress) {
  impl_->require_own_process();
  int64_t n_rows = 0, n_logits = 0;
  for (const StepInput& in : inputs) {
    n_rows += static_cast<int64_t>(in.tokens.size());
    n_logits += rows_of(in);
  }
  if (n_rows > impl_->options.prefill_chunk) {
    throw InvalidArgument(
        "step: " + std::to_string(n_rows) + " rows in one step; at most " +
        std::to_string(impl_->options.prefill_chunk) + " (prefill_chunk)");
  }

  // Everything that can fail for want of memory comes before the step; afterwards only moves.
  std::lock_guard lock(impl_->mutex);
  std::vector<ForwardInput> forward;
  std::vector<std::vector<std::shared_ptr<Checkpoint>>> checkpoints(inputs.size());
  const int64_t vocab = impl_->config.vocab_size;
  std::vector<std::vector<float>> last(inputs.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    const StepInput& in = inputs[i];
    Session::Impl& s = *in.session->impl_;
    const int64_t n = static_cast<int64_t>(in.tokens.size());
    if (s.cache) s.cache->cache()->trim();
    s.kv.reserve(n);
    s.tokens.reserve(n);
    for (int64_t pos : checkpoint_positions(s.kv.pos(), s.kv.pos() + n, s.marks)) {
      checkpoints[i].push_back(s.kv.new_checkpoint(pos));
    }
    s.kv.reserve_checkpoints(checkpoints[i].size());
    if (rows_of(in) > 0) last[i].resize(vocab);
    forward.push_back({&s.kv, in.tokens, checkpoints[i], rows_of(in)});
  }
  for (const ForwardInput& in : forward) in.kv->refresh_rows();
  const size_t before = logits.size();
  logits.resize(before + n_logits * vocab);
  try {
    impl_->forward->run(forward, logits.data() + before, interruption(progress));
    impl_->forward->accept(forward);
    impl_->scratch_bytes = impl_->forward->scratch_bytes() + impl_->backend->scratch_bytes();
  } catch (...) {
    logits.resize(before);
    throw;
  }
  const float* next = logits.data() + before;
  for (size_t i = 0; i < inputs.size(); i++) {
    Session::Impl& s = *inputs[i].session->impl_;
    s.tokens.append(inputs[i].tokens);
    for (const auto& checkpoint : checkpoints[i]) s.kv.add_checkpoint(checkpoint);
    next += forward[i].n_logits * vocab;
    if (forward[i].n_logits > 0) std::copy(next - vocab, next, last[i].begin());
    s.logits = std::move(last[i]);
    if (!s.cache) continue;
    try {
      s.cache->appended(s.kv, s.tokens.view(), checkpoints[i], s.marks);
    } catch (
        const std::exception&) {  // no memory: these blocks are offered again with the next step
    }
  }
}

}  // namespace grebe
