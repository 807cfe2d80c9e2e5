// What a model holds; shared by model.cpp and session.cpp.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "grebe.h"
#include "model/forward.h"
#include "session/kv_state.h"
#include "session/token_log.h"

namespace grebe {

struct Model::Impl {
  LoadOptions options;
  std::shared_ptr<const GgufFile> file;
  ModelConfig config;
  ModelWeights weights;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string fingerprint;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<KvLayout> layout;
  int pid = 0;       // of the process that loaded it and has its threads
  std::mutex mutex;  // one step at a time: scratch and threads are shared
  std::unique_ptr<Forward> forward;
};

struct Session::Impl {
  std::shared_ptr<Model> model;
  int64_t n_ctx = 0;
  KvState kv;
  TokenLog tokens;            // what kv covers
  std::vector<float> logits;  // of the last token; empty when not computed
  mutable std::mutex busy;    // held by the one caller that uses the session

  Impl(std::shared_ptr<Model> m, int64_t n_ctx, KvState kv)
      : model(std::move(m)), n_ctx(n_ctx), kv(std::move(kv)) {}
  void check_tokens(std::span<const int32_t> tokens) const;
  void check_room(int64_t n_tokens) const;
};

}  // namespace grebe
