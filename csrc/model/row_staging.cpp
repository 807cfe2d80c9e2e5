#include "model/row_staging.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "session/row_pager.h"

namespace grebe {

uint64_t RowStaging::bytes() const {
  uint64_t n = 0;
  for (const DeviceMemory& memory : memory_) n += memory.bytes();
  return n;
}

void RowStaging::stage(AttentionTask& task, KvState& kv, int32_t k, int32_t* selected) {
  const int64_t n = task.segment.n, top_k = task.top_k;
  const int64_t visible = (task.segment.pos + n) / task.ratio;
  rows_.clear();
  if (!selected) {
    for (int64_t r = 0; r < visible; r++) rows_.push_back(static_cast<int32_t>(r));
  } else {
    seen_.assign(visible / 64 + 1, 0);
    for (int64_t i = 0; i < n * top_k; i++) {
      if (selected[i] >= 0) seen_[selected[i] / 64] |= uint64_t{1} << selected[i] % 64;
    }
    rank_.resize(seen_.size());
    for (size_t word = 0; word < seen_.size(); word++) {
      rank_[word] = static_cast<int32_t>(rows_.size());
      for (uint64_t bits = seen_[word]; bits != 0; bits &= bits - 1) {
        rows_.push_back(static_cast<int32_t>(64 * word + std::countr_zero(bits)));
      }
    }
    for (int64_t i = 0; i < n * top_k; i++) {
      const int32_t row = selected[i];
      if (row < 0) continue;
      const uint64_t before = (uint64_t{1} << row % 64) - 1;
      selected[i] = rank_[row / 64] + std::popcount(seen_[row / 64] & before);
    }
  }

  if (n_used_ == memory_.size()) {
    memory_.emplace_back();
    bases_.push_back(nullptr);
  }
  const uint64_t need = std::max<uint64_t>(rows_.size(), 1) * task.rows.row_bytes;
  DeviceMemory& memory = memory_[n_used_];
  if (memory.bytes() < need) {
    memory = {};
    memory = DeviceMemory(backend_, need + need / 4, "rows read back from disk");
  }
  bases_[n_used_] = memory.data();
  try {
    kv.pager()->gather(kv.blocks(), k, rows_, n > 1, memory.data());
  } catch (RowsLost& lost) {
    lost.kv = &kv;
    throw;
  }
  task.rows = {&bases_[n_used_], 0, std::numeric_limits<int32_t>::max(), task.rows.row_bytes};
  n_used_++;

  if (n > 1) return;
  std::vector<std::vector<int32_t>>& last = kv.last_rows();
  last[k].swap(rows_);
  const int32_t next = k + 1;
  if (next < static_cast<int32_t>(last.size())) kv.pager()->prefetch(kv.blocks(), next, last[next]);
}

}  // namespace grebe
