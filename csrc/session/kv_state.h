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
#include "model/config.h"

namespace grebe {

constexpr int32_t kBlockTokens =
    512;  // a multiple of both compression ratios: a full block never changes again
constexpr int32_t kCheckpointTokens =
    128;  // checkpoints lie at multiples of this: ratio-128 pooling is empty there
constexpr int64_t kCheckpointsPerStep = 4;  // at every aligned position of that many at the end
constexpr size_t kMaxCheckpoints = 12;      // about 3.7 MB each on Flash

/// Where everything lies, computed once per model. Offsets in bytes.
struct KvLayout {
  struct Layer {
    int32_t ratio = 0;
    int64_t kv_offset = 0, index_offset = 0;         // in a block
    int64_t ring_offset = 0;                         // in the ring memory
    int64_t pool_offset = 0, index_pool_offset = 0;  // in the pool memory, in floats
    PoolShape pool, index_pool;
  };
  KvRowFormat kv;
  IndexRowFormat index;
  int32_t window_size = 0;
  std::vector<Layer> layers;
  int64_t block_bytes = 0;
  int64_t ring_bytes = 0;
  int64_t pool_floats = 0;

  KvLayout(const ModelConfig& config, bool rounding, bool exact);
  uint64_t pool_bytes() const { return sizeof(float) * pool_floats; }
};

/// Memory of a backend, released on destruction.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Backend& backend, uint64_t bytes, const char* what)
      : backend_(&backend), data_(backend.allocate(bytes, what)), bytes_(bytes) {}
  ~DeviceMemory() {
    if (data_) backend_->release(data_, bytes_);
  }
  DeviceMemory(DeviceMemory&& o) noexcept { *this = std::move(o); }
  DeviceMemory& operator=(DeviceMemory&& o) noexcept {
    std::swap(backend_, o.backend_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
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
  void reserve(int64_t n);
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
    std::vector<std::shared_ptr<DeviceMemory>> blocks;
    std::vector<uint8_t*> bases;
  };
  void own_table();
  void truncate(int64_t pos);
  static uint64_t next_stamp();

  Backend* backend_;
  const KvLayout* layout_;
  int64_t pos_ = 0;
  uint64_t stamp_ = next_stamp();
  std::shared_ptr<BlockTable> table_;
  DeviceMemory ring_;
  DeviceMemory pools_;
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints_;
};

}  // namespace grebe
