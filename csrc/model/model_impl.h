// What a model holds; shared by model.cpp and session.cpp.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "backend/observer.h"
#include "grebe.h"
#include "model/forward.h"
#include "session/kv_state.h"
#include "session/session_cache.h"
#include "session/token_log.h"

namespace grebe {

struct SnapshotModel;

struct Model::Impl {
  LoadOptions options;
  std::shared_ptr<const GgufFile> file;
  ModelConfig config;
  ModelWeights weights;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string fingerprint;
  std::unique_ptr<Backend> backend;
  Observer* observer = nullptr;  // the backend, when it observes
  std::unique_ptr<KvLayout> layout;
  int pid = 0;       // of the process that loaded it and has its threads
  std::mutex mutex;  // one step at a time: scratch and threads are shared
  std::unique_ptr<Forward> forward;
  std::atomic<uint64_t> scratch_bytes{0};

  void require_own_process() const;
  /// What stands for this model and the way it computes, in a cache.
  RootInfo root() const;
  Digest root_id(const std::string& numerics) const;
  SnapshotModel snapshot_model() const;
};

/// Holds a session for one call.
class Use {
 public:
  explicit Use(std::atomic<bool>& busy) : busy_(&busy) {
    if (busy.exchange(true)) throw InvalidArgument("session is busy: another call is using it");
  }
  Use(Use&& other) noexcept : busy_(std::exchange(other.busy_, nullptr)) {}
  Use& operator=(Use&&) = delete;
  ~Use() {
    if (busy_) busy_->store(false);
  }

 private:
  std::atomic<bool>* busy_;
};

struct Session::Impl {
  std::shared_ptr<Model> model;
  int64_t n_ctx = 0;
  KvState kv;
  TokenLog tokens;                        // what kv covers
  std::vector<float> logits;              // of the last token; empty when not computed
  std::unique_ptr<SessionCache> cache;    // null: none
  std::vector<int64_t> marks;             // of the prompt that is being read
  bool recovering = false;                // rows that the disk lost
  bool mixed = false;                     // restored from where rows are computed otherwise
  mutable std::atomic<bool> busy{false};  // a caller is using the session

  Impl(std::shared_ptr<Model> m, int64_t n_ctx, KvState kv)
      : model(std::move(m)), n_ctx(n_ctx), kv(std::move(kv)) {}
  Use use() const { return Use(busy); }
  void check_tokens(std::span<const int32_t> tokens) const;
  void check_room(int64_t n_tokens) const;
};

}  // namespace grebe
