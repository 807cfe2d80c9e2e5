// The forward pass of DeepSeek V4, written once over the backend's ops [V4 4].
//
// A step takes rows of several sessions; every weight is read once for all of them. Raw window rows
// of the step stay in scratch and compressor state is written beside the old one, so nothing that a
// session owns changes before the step has succeeded (rows appended to history blocks lie beyond
// what the session claims to have). The caller then accepts the step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/row_staging.h"
#include "model/weights.h"
#include "session/kv_state.h"

namespace grebe {

/// One session's rows in a step. kv->reserve(n) has been called.
struct ForwardInput {
  KvState* kv = nullptr;
  std::span<const int32_t> tokens;
  std::span<const std::shared_ptr<Checkpoint>>
      checkpoints;       ///< to fill: ascending positions in (pos, pos + n]
  int64_t n_logits = 0;  ///< of the last n_logits rows
};

class Forward {
 public:
  Forward(
      Backend& backend,
      const ModelConfig& config,
      const ModelWeights& weights,
      const KvLayout& layout);

  /// Runs the step and writes logits f32[sum of n_logits, vocab]. Throws BackendError when a number
  /// is not finite, Cancelled when `interrupted` says so between two layers; sessions are as before
  /// on any throw.
  void run(
      std::span<const ForwardInput> inputs, float* logits, Backend::Interrupted interrupted = {});
  /// Takes the last run's window rows and pooling state over into input i's session.
  void accept(std::span<const ForwardInput> inputs);

  uint64_t scratch_bytes() const { return scratch_bytes_ + staging_.bytes(); }

 private:
  struct LayerTables {  // small vectors in device memory
    Backend::HcPre hc_attn, hc_ffn;
    const float *q_a_norm, *kv_norm, *sinks, *router_bias;
    const float *ape, *pool_norm, *index_ape, *index_pool_norm;
    const int32_t* tid2eid;
  };
  struct Scratch;
  struct Step;

  const float* upload(const Vec& v);
  Step plan(std::span<const ForwardInput> inputs, bool ahead) const;
  void ensure_scratch(const Step& step);
  void allocate_scratch(int64_t n_rows, int64_t n_segments);
  void fill_tables(const Step& step, std::span<const ForwardInput> inputs);
  void record(const Step& step, float* logits);
  void record_ahead(std::span<const ForwardInput> inputs);
  void forget_ahead();
  bool recorded_ahead(std::span<const ForwardInput> inputs) const;
  void attention_layer(const Step& step, int32_t i_layer);
  void feed_forward_layer(const Step& step, int32_t i_layer);
  void compress(const Step& step, int32_t i_layer);
  void output_logits(const Step& step, float* logits);

  Backend& backend_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  const KvLayout& layout_;
  std::vector<LayerTables> tables_;
  Backend::HcPre head_{};
  std::vector<DeviceMemory> uploads_;
  std::vector<float> frequencies_[2];  // plain, compressed
  std::shared_ptr<Scratch> scratch_;
  RowStaging staging_;
  uint64_t scratch_bytes_ = 0;
  struct Expected {  // an input of the step recorded ahead
    uint64_t stamp;
    int64_t pos;
  };
  std::vector<Expected> ahead_;  // empty: none
};

}  // namespace grebe
