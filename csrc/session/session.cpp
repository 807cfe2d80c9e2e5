#include <unistd.h>

#include <algorithm>

#include "grebe.h"
#include "model/model_impl.h"

namespace grebe {
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
Session::~Session() {
  if (!impl_ || !impl_->cache) return;
  if (impl_->model->impl_->pid != getpid()) {  // locks may be held by threads of the parent
    (void)impl_.release();
    return;
  }
  const std::shared_ptr<KvCache> cache = impl_->cache->cache();
  const std::shared_ptr<Model> model = impl_->model;
  try {
    impl_->cache->turn_ended(impl_->kv, impl_->tokens.view());
    impl_.reset();
    // What only the cache holds now counts for its budget; a step that is under way trims later.
    if (const std::unique_lock idle(model->impl_->mutex, std::try_to_lock); idle) {
      cache->trim(cache->ram_bytes());
    }
  } catch (const std::exception&) {  // no memory: an earlier anchor must do
  }
}

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

// Appends tokens in chunks that end at multiples of the chunk size, so that checkpoints fall on
// them. `all`: where to put the logits of every position, else null. The caller holds the session.
void Session::append(
    std::span<const int32_t> tokens, std::vector<float>* all, const Progress& progress) {
  const int64_t chunk = model()->options().prefill_chunk;
  const int64_t total = static_cast<int64_t>(tokens.size());
  int64_t done = 0;
  std::vector<float> last;
  while (done < total) {
    const int64_t n = std::min(chunk - pos() % chunk, total - done);
    const StepInput in{
        this,
        tokens.subspan(done, n),
        all                 ? StepInput::Logits::kAll
        : done + n == total ? StepInput::Logits::kLast
                            : StepInput::Logits::kNone};
    last.clear();
    model()->run_step({&in, 1}, all ? *all : last, progress);
    done += n;
    if (progress.chunk && !progress.chunk(done, total) && done < total) {
      throw Cancelled(
          "cancelled after " + std::to_string(done) + " of " + std::to_string(total) + " tokens");
    }
  }
}

// Brings the state to the furthest point, at most `limit`, that can be had without computing: where
// it is, a checkpoint of its own, or what the cache knows of `goal`, whose first n_common tokens
// the state covers.
void Session::reach(std::span<const int32_t> goal, int64_t n_common, int64_t limit) {
  Impl& s = *impl_;
  const bool stay = s.kv.pos() <= std::min(n_common, limit);
  const auto checkpoint = stay ? nullptr : s.kv.find_checkpoint(std::min(n_common, limit));
  const int64_t own = stay ? s.kv.pos() : checkpoint ? checkpoint->pos : 0;
  if (s.cache) {
    s.tokens.reserve(static_cast<int64_t>(goal.size()));
    if (const auto pos = s.cache->resume(s.kv, goal, n_common, limit, own)) {
      s.tokens.truncate(0);
      s.tokens.append(goal.first(*pos));
      s.logits.clear();
      return;
    }
  }
  if (stay) return;
  s.kv.restore(checkpoint);
  s.tokens.truncate(own);
  s.logits.clear();
  if (s.cache) s.cache->truncate(own);
}

// The disk does not give rows that the state rests on: takes them from another session that has
// computed them again, or does so itself from the tokens. What another block loses meanwhile leads
// back to the first token, where nothing rests on a disk.
void Session::recover(const RowsLost& lost, const Progress& progress) {
  Impl& s = *impl_;
  const size_t i = static_cast<size_t>(lost.i_block);
  const bool again = s.recovering;
  if (std::shared_ptr<KvBlock> known = s.cache->replace_lost(s.kv, i)) {
    std::lock_guard lock(s.model->impl_->mutex);
    s.kv.share_block(i, std::move(known));
    return;
  }
  if (again) throw lost;
  const std::vector<int32_t> goal(s.tokens.view().begin(), s.tokens.view().end());
  Progress cancel;
  cancel.layer = progress.layer;
  if (progress.layer) cancel.chunk = [&](int64_t, int64_t) { return progress.layer(); };
  struct Recovering {
    Impl& s;
    explicit Recovering(Impl& impl) : s(impl) { set(true); }
    ~Recovering() { set(false); }
    void set(bool on) {
      s.recovering = on;
      s.cache->set_recovering(on);
    }
  } const recovering(s);
  try {
    const int64_t limit = std::min<int64_t>(lost.i_block * kBlockTokens, s.kv.pos());
    reach(goal, static_cast<int64_t>(goal.size()), limit);
    append(std::span(goal).subspan(pos()), nullptr, cancel);
  } catch (const RowsLost&) {
    s.kv.restore(nullptr);
    s.tokens.truncate(0);
    s.logits.clear();
    s.cache->truncate(0);
    append(goal, nullptr, cancel);
  }
}

void Session::end_turn() {
  const Use use = impl_->use();
  if (impl_->cache) impl_->cache->turn_ended(impl_->kv, impl_->tokens.view());
}

std::shared_ptr<KvCache> Session::cache() const {
  return impl_->cache ? impl_->cache->cache() : nullptr;
}

// The tokens that a call is to lead to, checked. A copy: the caller may pass our own tokens().
std::vector<int32_t> Session::checked_goal(std::span<const int32_t> tokens) const {
  std::vector<int32_t> goal(tokens.begin(), tokens.end());
  if (goal.empty()) throw InvalidArgument("prefill: no tokens; expected at least 1");
  impl_->check_tokens(goal);
  impl_->check_room(static_cast<int64_t>(goal.size()));
  return goal;
}

void Session::set_marks(std::span<const int64_t> marks, int64_t size) {
  for (int64_t mark : marks) {
    if (mark < 0 || mark > size) {
      throw InvalidArgument(
          "prefill: mark " + std::to_string(mark) + "; expected 0.." + std::to_string(size));
    }
  }
  impl_->marks.clear();
  for (int64_t mark : marks) {
    impl_->marks.push_back(mark / kCheckpointTokens * kCheckpointTokens);
  }
}

int64_t Session::resume(std::span<const int32_t> tokens, std::span<const int64_t> marks) {
  const Use use = impl_->use();
  const std::vector<int32_t> goal = checked_goal(tokens);
  const int64_t size = static_cast<int64_t>(goal.size());
  set_marks(marks, size);
  const std::span<const int32_t> have = impl_->tokens.view();
  const int64_t common =
      std::mismatch(have.begin(), have.end(), goal.begin(), goal.end()).first - have.begin();
  reach(goal, common, size - 1);
  return pos();
}

int64_t Session::prefill(
    std::span<const int32_t> tokens, const Progress& progress, std::span<const int64_t> marks) {
  const Use use = impl_->use();
  const std::vector<int32_t> goal = checked_goal(tokens);
  const int64_t size = static_cast<int64_t>(goal.size());
  set_marks(marks, size);
  Impl& s = *impl_;
  struct Unmark {
    std::vector<int64_t>& marks;
    ~Unmark() { marks.clear(); }
  } const unmark{s.marks};
  const std::span<const int32_t> have = s.tokens.view();
  const int64_t common =
      std::mismatch(have.begin(), have.end(), goal.begin(), goal.end()).first - have.begin();
  if (common == size && pos() == size && has_logits()) return 0;
  // The last token is computed even when it is known, for its logits.
  reach(goal, common, size - 1);
  const int64_t computed = size - pos();
  append(std::span(goal).subspan(pos()), nullptr, progress);
  if (s.cache) s.cache->turn_ended(s.kv, s.tokens.view());
  return computed;
}

void Session::decode(int32_t token) {
  const Use use = impl_->use();
  impl_->check_tokens({&token, 1});
  impl_->check_room(pos() + 1);
  append({&token, 1}, nullptr, {});
}

std::vector<float> Session::evaluate(std::span<const int32_t> tokens, const Progress& progress) {
  const Use use = impl_->use();
  const std::vector<int32_t> copy(tokens.begin(), tokens.end());
  impl_->check_tokens(copy);
  impl_->check_room(pos() + static_cast<int64_t>(copy.size()));
  std::vector<float> logits;
  const size_t need = copy.size() * impl_->model->config().vocab_size;
  try {
    logits.reserve(need);
  } catch (const std::exception&) {
    throw OutOfMemory(
        "out of memory: " + std::to_string(need * sizeof(float)) + " bytes for the logits of " +
            std::to_string(copy.size()) + " positions; evaluate fewer at a time",
        need * sizeof(float));
  }
  append(copy, &logits, progress);
  return logits;
}

std::shared_ptr<Session> Session::fork() const {
  const Use use = impl_->use();
  std::shared_ptr<Session> copy(new Session());
  copy->impl_ = std::make_unique<Impl>(impl_->model, impl_->n_ctx, impl_->kv.fork());
  copy->impl_->tokens = impl_->tokens;
  copy->impl_->logits = impl_->logits;
  copy->impl_->mixed = impl_->mixed;
  if (impl_->cache) copy->impl_->cache = impl_->cache->fork();
  return copy;
}

int64_t Session::rewind(int64_t target, const Progress& progress) {
  const Use use = impl_->use();
  if (target < 0 || target > pos()) {
    throw InvalidArgument(
        "rewind: position " + std::to_string(target) + "; expected 0.." + std::to_string(pos()));
  }
  if (target == pos() && (target == 0 || has_logits())) return 0;
  const std::span<const int32_t> have = impl_->tokens.view().first(target);
  const std::vector<int32_t> goal(have.begin(), have.end());
  // One token at least is replayed, for its logits.
  reach(goal, target, std::max<int64_t>(target - 1, 0));
  const int64_t replayed = target - pos();
  append(std::span(goal).subspan(pos()), nullptr, progress);
  return replayed;
}

}  // namespace grebe
