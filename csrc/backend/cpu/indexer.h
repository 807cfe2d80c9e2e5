// The lightning indexer: scores index rows against a step's queries and picks the best [V4 4.9].
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/ops.h"
#include "core/thread_pool.h"

namespace grebe::cpu {

class Indexer {
 public:
  /// Keeps references to the pool and the table.
  Indexer(ThreadPool& pool, const OpsTable& ops) : pool_(pool), ops_(ops) {}

  /// Backend::index_select.
  void select(
      std::span<const IndexTask> tasks,
      const Backend::IndexShape& shape,
      float* q,
      const RopeTable& rope,
      const float* weights,
      int64_t n);
  uint64_t scratch_bytes() const;
  /// True once after a selection met scores that are NaN.
  bool take_fault() { return not_finite_.exchange(false); }

 private:
  using IndexShape = Backend::IndexShape;
  void prepare(
      const IndexShape& shape, float* q, const RopeTable& rope, const float* weights, int64_t n);
  void score_rows(
      const IndexTask& task,
      const IndexShape& shape,
      const float* q,
      int64_t first,
      int64_t count,
      int64_t stride);
  /// False when a score is NaN; `out` is then arbitrary but valid.
  static bool select_top(const float* scores, int64_t visible, int32_t top_k, int32_t* out);

  std::atomic<bool> not_finite_{false};
  ThreadPool& pool_;
  const OpsTable& ops_;
  std::vector<int8_t> codes_;  // of the step's queries, as in IndexQuery
  std::vector<float> scales_, weights_;
  std::vector<int32_t> sums_;
  std::vector<float> scores_;   // [queries of a group][rows, padded to panels]
  std::vector<float> scratch_;  // a panel per thread
};

}  // namespace grebe::cpu
