// Rows that attention wants and that are on disk only, put side by side in memory.
//
// A task's selection is rewritten to number them there. Their order stays, so attention adds in the
// order that it would have with all rows in memory, and backends see rows like any others.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "backend/backend.h"
#include "session/kv_state.h"

namespace grebe {

class RowStaging {
 public:
  explicit RowStaging(Backend& backend) : backend_(backend) {}

  /// Makes the memory of the last step free for this one.
  void begin_layer() { n_used_ = 0; }
  /// Fetches the rows of the k-th ratio-4 layer that `task` reads. selected: i32[n, top_k], its own
  /// to rewrite; null: all visible rows. Throws RowsLost.
  void stage(AttentionTask& task, KvState& kv, int32_t k, int32_t* selected);
  uint64_t bytes() const;

 private:
  Backend& backend_;
  std::vector<DeviceMemory> memory_;  // one for each task of a layer
  std::deque<uint8_t*> bases_;        // keep their places
  size_t n_used_ = 0;
  std::vector<int32_t> rows_;
  std::vector<uint64_t> seen_;  // a bit for each row
  std::vector<int32_t> rank_;   // rows before each 64
};

}  // namespace grebe
