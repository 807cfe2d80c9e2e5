// A session's KV state: everything that the model must remember of the tokens so far [V4 6].
//
// Compressed rows and index rows are append-only and live in history blocks of 512 tokens that
// sessions share (copy on write). Beside them a session owns what changes with every token: the raw
// window (a ring of window_size rows a layer) and the online pooling triples of the compressors. A
// checkpoint is a copy of those two; with it and the history any earlier position is reached by
// replaying what lies between.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "session/device_memory.h"
#include "session/kv_layout.h"

namespace grebe {

class PagedRows;
class RowPager;

constexpr int64_t kCheckpointsPerStep = 4;  // at every aligned position of that many at the end
constexpr size_t kMaxCheckpoints = 12;      // about 3.7 MB each on Flash

/// What 512 tokens leave behind. A full one never changes again and may be shared by any number of
/// sessions. Who has a cache: `rows` leave under the model's and the cache's mutex together, and
/// `paged` comes once, under the cache's, while rows are still there; so a step, which holds the
/// model's, looks at `paged` only where there are no rows.
struct KvBlock {
  DeviceMemory keys;
  DeviceMemory rows;                 ///< none while they are on disk only
  std::shared_ptr<PagedRows> paged;  ///< rows on disk; null: not there
  /// Its rows stay in memory: they had to be computed again since the disk lost them.
  bool pinned = false;
  int n_readers = 0;  ///< that want its rows to stay; under the cache's mutex
};

/// Window rows and pooling triples after `pos` tokens. Immutable once made; shared by forks.
struct Checkpoint {
  int64_t pos = 0;
  DeviceMemory ring;
  DeviceMemory pools;
};

class KvState {
 public:
  KvState(Backend& backend, const KvLayout& layout);
  KvState(KvState&&) = default;
  KvState& operator=(KvState&&) = default;

  int64_t pos() const { return pos_; }
  /// A number that no other state has, and that changes whenever memory of this one moves. A step
  /// recorded ahead is good for the same stamp and position.
  uint64_t stamp() const { return stamp_; }
  uint64_t n_bytes() const;
  uint64_t checkpoint_bytes() const;
  /// Shares the history; copies window, triples and the list of checkpoints.
  KvState fork() const;

  /// Makes blocks for positions [pos, pos + n) exist and be this session's own. Strong guarantee.
  /// Throws RowsLost.
  void reserve(int64_t n);
  /// Blocks may have given up their rows since the last step: looks again where they are.
  void refresh_rows();
  /// Some rows of ratio 4 are on disk only: attention must gather what it needs, with the pager.
  bool paged() const { return paged_; }
  RowPager* pager() const { return pager_.get(); }
  void set_pager(std::shared_ptr<RowPager> pager) { pager_ = std::move(pager); }
  /// For each ratio-4 layer the rows that the last token chose: the next one chooses much the same.
  std::vector<std::vector<int32_t>>& last_rows() { return last_rows_; }
  const std::vector<std::shared_ptr<KvBlock>>& blocks() const { return table_->blocks; }
  /// Puts an equal, full block in the place of this session's own.
  void share_block(size_t i, std::shared_ptr<KvBlock> block);
  /// Takes the place of this state: full blocks, one that is filled in part (or null), and the
  /// checkpoint that lies at their end.
  void adopt(
      std::vector<std::shared_ptr<KvBlock>> blocks,
      const std::shared_ptr<const Checkpoint>& checkpoint);
  RowStream kv_rows(int32_t i_layer) const;
  RowStream index_rows(int32_t i_layer) const;
  uint8_t* ring(int32_t i_layer) const {
    return ring_.data() + layout_->layers[i_layer].ring_offset;
  }
  float* pools() const { return pools_.as<float>(); }
  uint8_t* ring_data() const { return ring_.data(); }

  /// Copies window rows [first, end) of a layer, found in the ring or (from pos() on) in new_rows,
  /// to their slots in `ring`.
  void copy_window(
      int32_t i_layer, const uint8_t* new_rows, int64_t first, int64_t end, uint8_t* ring) const;
  /// Accepts a step of n tokens. new_rows u8[n_layers][layer_stride]: the step's raw rows, this
  /// session's first.
  void accept(int64_t n, const uint8_t* new_rows, int64_t layer_stride, const float* pools);

  /// Latest checkpoint with position <= pos, null when there is none.
  std::shared_ptr<const Checkpoint> find_checkpoint(int64_t pos) const;
  /// Makes add_checkpoint() of up to n unable to fail.
  void reserve_checkpoints(size_t n) { checkpoints_.reserve(checkpoints_.size() + n); }
  void add_checkpoint(std::shared_ptr<const Checkpoint> checkpoint);
  const std::vector<std::shared_ptr<const Checkpoint>>& checkpoints() const { return checkpoints_; }
  std::shared_ptr<Checkpoint> new_checkpoint(int64_t pos) const;
  /// Goes back to a checkpoint (null: to the empty state). Later checkpoints are dropped; strong
  /// guarantee.
  void restore(const std::shared_ptr<const Checkpoint>& checkpoint);
  /// For snapshots: claims `pos` tokens; the caller has filled rows, ring and pools.
  void set_pos(int64_t pos) { pos_ = pos; }

 private:
  struct BlockTable {
    std::vector<std::shared_ptr<KvBlock>> blocks;
    std::vector<uint8_t*> keys, rows;  // rows: null where they are on disk only
  };
  void own_table();
  std::shared_ptr<KvBlock> copy_block(size_t i) const;
  void set_block(size_t i, std::shared_ptr<KvBlock> block);
  void truncate(int64_t pos);
  static uint64_t next_stamp();

  Backend* backend_;
  const KvLayout* layout_;
  int64_t pos_ = 0;
  uint64_t stamp_ = next_stamp();
  bool paged_ = false;
  std::shared_ptr<BlockTable> table_;
  DeviceMemory ring_;
  DeviceMemory pools_;
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints_;
  std::shared_ptr<RowPager> pager_;
  std::vector<std::vector<int32_t>> last_rows_;
};

}  // namespace grebe
