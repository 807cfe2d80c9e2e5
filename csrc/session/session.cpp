#include <algorithm>

#include "grebe.h"
#include "model/model_impl.h"

namespace grebe {
namespace {

std::unique_lock<std::mutex> use(std::mutex& busy) {
  std::unique_lock lock(busy, std::try_to_lock);
  if (!lock.owns_lock()) throw InvalidArgument("session is busy: another thread is using it");
  return lock;
}

}  // namespace

void Session::Impl::check_tokens(std::span<const int32_t> ids) const {
  const int32_t vocab = model->config().vocab_size;
  for (size_t i = 0; i < ids.size(); i++) {
    if (ids[i] < 0 || ids[i] >= vocab) {
      throw InvalidArgument(
          "token " + std::to_string(i) + " is " + std::to_string(ids[i]) + "; expected 0.." +
          std::to_string(vocab - 1));
    }
  }
}

void Session::Impl::check_room(int64_t n_tokens) const {
  if (n_tokens > n_ctx) {
    throw ContextOverflow(
        "the context is full: " + std::to_string(n_tokens) + " tokens, n_ctx is " +
            std::to_string(n_ctx),
        n_tokens,
        n_ctx);
  }
}

Session::Session() = default;
Session::~Session() = default;

const std::shared_ptr<Model>& Session::model() const { return impl_->model; }
bool Session::has_logits() const { return !impl_->logits.empty(); }
std::span<const int32_t> Session::tokens() const { return impl_->tokens.view(); }
int64_t Session::pos() const { return impl_->kv.pos(); }
int64_t Session::n_ctx() const { return impl_->n_ctx; }
uint64_t Session::n_bytes() const { return impl_->kv.n_bytes(); }
uint64_t Session::checkpoint_bytes() const { return impl_->kv.checkpoint_bytes(); }

std::span<const float> Session::logits() const {
  if (impl_->logits.empty())
    throw InvalidArgument("the session has no logits yet; prefill or decode first");
  return impl_->logits;
}

namespace {

// Appends tokens in chunks that end at multiples of the chunk size, so that checkpoints fall on
// them. `all`: where to put the logits of every position, else null.
void append(
    Session& session,
    std::span<const int32_t> tokens,
    std::vector<float>* all,
    int64_t done,
    int64_t total,
    const Progress& progress) {
  const int64_t chunk = session.model()->options().prefill_chunk;
  std::vector<float> last;
  while (!tokens.empty()) {
    const int64_t room = chunk - session.pos() % chunk;
    const int64_t n = std::min<int64_t>(room, static_cast<int64_t>(tokens.size()));
    const bool end = n == static_cast<int64_t>(tokens.size());
    StepInput in{
        &session,
        tokens.first(n),
        all   ? StepInput::Logits::kAll
        : end ? StepInput::Logits::kLast
              : StepInput::Logits::kNone};
    last.clear();
    session.model()->step({&in, 1}, all ? *all : last);
    tokens = tokens.subspan(n);
    done += n;
    if (progress && !progress(done, total) && !tokens.empty()) {
      throw Cancelled(
          "cancelled after " + std::to_string(done) + " of " + std::to_string(total) + " tokens");
    }
  }
}

// Brings the state back to `target` <= pos() or to the checkpoint before it.
void go_back(Session::Impl& s, int64_t target) {
  if (s.kv.pos() <= target) return;
  s.kv.restore(s.kv.find_checkpoint(target));
  s.tokens.truncate(s.kv.pos());
  s.logits.clear();
}

}  // namespace

int64_t Session::prefill(std::span<const int32_t> tokens, const Progress& progress) {
  std::vector<int32_t> goal(tokens.begin(), tokens.end());  // the caller may pass our own tokens()
  {
    auto lock = use(impl_->busy);
    if (goal.empty()) throw InvalidArgument("prefill: no tokens; expected at least 1");
    impl_->check_tokens(goal);
    impl_->check_room(static_cast<int64_t>(goal.size()));
    const std::span<const int32_t> have = impl_->tokens.view();
    const int64_t common =
        std::mismatch(have.begin(), have.end(), goal.begin(), goal.end()).first - have.begin();
    const int64_t size = static_cast<int64_t>(goal.size());
    if (common == size && pos() == size && has_logits()) return 0;
    // The last token is computed even when it is known, for its logits.
    go_back(*impl_, std::min(common, size - 1));
  }
  const int64_t computed = static_cast<int64_t>(goal.size()) - pos();
  append(*this, std::span(goal).subspan(pos()), nullptr, 0, computed, progress);
  return computed;
}

void Session::decode(int32_t token) { append(*this, {&token, 1}, nullptr, 0, 1, {}); }

std::vector<float> Session::evaluate(std::span<const int32_t> tokens, const Progress& progress) {
  {
    auto lock = use(impl_->busy);
    impl_->check_tokens(tokens);
    impl_->check_room(pos() + static_cast<int64_t>(tokens.size()));
  }
  std::vector<float> logits;
  append(*this, tokens, &logits, 0, static_cast<int64_t>(tokens.size()), progress);
  return logits;
}

std::shared_ptr<Session> Session::fork() const {
  auto lock = use(impl_->busy);
  std::shared_ptr<Session> copy(new Session());
  copy->impl_ = std::make_unique<Impl>(impl_->model, impl_->n_ctx, impl_->kv.fork());
  copy->impl_->tokens = impl_->tokens;
  copy->impl_->logits = impl_->logits;
  return copy;
}

int64_t Session::rewind(int64_t target, const Progress& progress) {
  std::vector<int32_t> replay;
  {
    auto lock = use(impl_->busy);
    if (target < 0 || target > pos()) {
      throw InvalidArgument(
          "rewind: position " + std::to_string(target) + "; expected 0.." + std::to_string(pos()));
    }
    if (target == pos()) return 0;
    const std::span<const int32_t> have = impl_->tokens.view().first(target);
    const std::vector<int32_t> goal(have.begin(), have.end());
    go_back(
        *impl_,
        std::max<int64_t>(target - 1, 0));  // one token at least is replayed, for its logits
    replay.assign(goal.begin() + pos(), goal.end());
  }
  append(*this, replay, nullptr, 0, static_cast<int64_t>(replay.size()), progress);
  return static_cast<int64_t>(replay.size());
}

}  // namespace grebe
