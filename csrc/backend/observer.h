// A backend around another one that looks at what passes through: what grebe imatrix and grebe
// compare measure.
//
// The forward pass does not know of it, and a model that is not observed does not have one, so
// observing costs nothing when it is off. It needs a backend whose ops have run when their call
// returns, and may use memory that the host reads.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/input_stats.h"

namespace grebe {

class Observer : public Backend {
 public:
  enum class What { kInputs, kHidden };
  /// Throws BackendUnavailable when the backend's ops do not run at once.
  Observer(std::unique_ptr<Backend> inner, What what);

  /// What has been summed up since the last call, by name. Experts have a row each; the input of
  /// `down` is counted as that matrix gets it, times the weight of the route. The groups of the
  /// output projection, which see different columns, count together.
  std::vector<InputStats> take_inputs();
  /// All streams after each layer, f32[n, n_streams, hidden] for the n rows since the last call.
  std::vector<std::vector<float>> take_hidden();

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  void map_weights(std::span<const std::span<const uint8_t>> files, uint64_t longest) override {
    inner_->map_weights(files, longest);
  }
  bool takes_host_memory() const override { return inner_->takes_host_memory(); }
  void* allocate(uint64_t bytes, const char* what) override {
    return inner_->allocate(bytes, what);
  }
  void release(void* memory, uint64_t bytes) noexcept override { inner_->release(memory, bytes); }
  uint64_t scratch_bytes() const override { return inner_->scratch_bytes(); }
  bool runs_ops_at_once() const override { return true; }
  void begin(Interrupted interrupted) override {
    n_sublayers_ = 0;
    inner_->begin(std::move(interrupted));
  }
  void flush() override { inner_->flush(); }
  void commit() override { inner_->commit(); }
  void wait() override { inner_->wait(); }
  void abandon() override { inner_->abandon(); }
  std::string trace() const override { return inner_->trace(); }

  void embed(
      const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X) override {
    inner_->embed(w, tokens, n, n_streams, X);
  }
  void hc_pre(
      const HcPre& p, const float* X, int64_t n, float* x, float* post, float* comb) override {
    inner_->hc_pre(p, X, n, x, post, comb);
  }
  void hc_post(
      float* X,
      const float* y,
      const float* post,
      const float* comb,
      int64_t n,
      int32_t n_streams,
      int64_t hidden) override;
  void hc_head(const HcPre& p, const float* X, const int32_t* rows, int64_t n, float* x) override {
    inner_->hc_head(p, X, rows, n, x);
  }
  void matmul(std::span<const Product> products, int64_t n) override;
  void rms_norm(float* x, const float* weight, int64_t n, int64_t width, float eps) override {
    inner_->rms_norm(x, weight, n, width, eps);
  }
  void q_norm_rope(
      float* q, const RopeTable& rope, int64_t n, int32_t n_heads, int32_t head_dim, float eps)
      override {
    inner_->q_norm_rope(q, rope, n, n_heads, head_dim, eps);
  }
  void kv_rows(
      const float* kv,
      const float* norm,
      const RopeTable& rope,
      int64_t n,
      const KvRowFormat& format,
      float eps,
      uint8_t* out) override {
    inner_->kv_rows(kv, norm, rope, n, format, eps, out);
  }
  void pool(std::span<const PoolTask> tasks) override { inner_->pool(tasks); }
  void store_kv_rows(
      std::span<const StoreRowsTask> tasks, const KvRowFormat& format, float eps) override {
    inner_->store_kv_rows(tasks, format, eps);
  }
  void store_index_rows(
      std::span<const StoreRowsTask> tasks, const IndexRowFormat& format, float eps) override {
    inner_->store_index_rows(tasks, format, eps);
  }
  void index_select(
      std::span<const IndexTask> tasks,
      const IndexShape& shape,
      float* q,
      const RopeTable& rope,
      const float* weights,
      int64_t n) override {
    inner_->index_select(tasks, shape, q, rope, weights, n);
  }
  void attention(
      std::span<const AttentionTask> tasks,
      const KvRowFormat& format,
      float* q,
      const RopeTable& rope,
      const float* sinks,
      int32_t n_heads,
      int32_t window_size) override {
    inner_->attention(tasks, format, q, rope, sinks, n_heads, window_size);
  }
  void route(
      const Route& p, const float* logits, int64_t n, int32_t* experts, float* weights) override {
    inner_->route(p, logits, n, experts, weights);
  }
  void moe(
      const Moe& p,
      const float* x,
      const int32_t* experts,
      const float* weights,
      int64_t n,
      float* y) override;

 private:
  struct Ffn;
  void add(const Weight& w, int64_t i_matrix, const float* x, int64_t n, int64_t stride);
  void expert(const Ffn& ffn, int64_t i_expert, const std::vector<float>& weights);

  std::unique_ptr<Backend> inner_;
  What what_;
  std::map<std::string, InputStats> inputs_;
  std::vector<std::vector<float>> hidden_;  // by layer
  size_t n_sublayers_ = 0;                  // of this step, finished
  std::vector<float> rows_, gate_, up_;
};

}  // namespace grebe
