// Blocks and anchors that any session may continue from: in RAM, and behind that in the store.
//
// A block is named by its tokens and all before them, so a session finds what others (or an earlier
// process) have computed by hashing its own tokens. Blocks come here when they are full, anchors
// when a session says that a point may be returned to; both are written by a thread of their own.
// What no session uses is kept in RAM up to a budget, least recently used first to go; rows of
// ratio 4 leave RAM also under sessions once they are on disk (session/row_pager.h).
//
// Nothing here fails for want of a disk: then there is less to find, and stats() says why.
// Thread-safe; trim() wants no step to be running.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/io_pool.h"
#include "session/kv_codec.h"
#include "session/kv_state.h"
#include "session/row_pager.h"
#include "store/block_store.h"
#include "store/store_writer.h"

namespace grebe {

class Backend;

struct CacheStats {
  uint64_t n_lookups = 0, n_hits = 0;
  uint64_t tokens_wanted = 0, tokens_found = 0;  ///< of lookups: asked for, and skipped by hits
  uint64_t blocks_from_ram = 0, blocks_from_disk = 0;
  // Why a lookup found nothing, or less than there was.
  uint64_t misses_unknown = 0;                    ///< no block or anchor of these tokens
  uint64_t misses_no_anchor = 0;                  ///< blocks, but no anchor to start from
  uint64_t misses_damaged = 0;                    ///< damaged or vanished on disk; computed again
  uint64_t misses_memory = 0;                     ///< no memory to load it
  uint64_t rows_lost = 0;                         ///< blocks computed again under a session
  uint64_t blocks_sealed = 0, blocks_shared = 0;  ///< full blocks; of these, known already
  uint64_t anchors_made = 0, anchors_written = 0, anchors_put_off = 0;
  uint64_t ram_bytes = 0;      ///< held of what could be let go
  uint64_t unsaved_bytes = 0;  ///< of blocks that wait for the disk
  StoreStats store;
  WriterStats writer;
  PagerStats pager;
};

class KvCache {
 public:
  struct Options {
    StoreOptions store;
    uint64_t ram_bytes = uint64_t{1} << 30;
  };

  /// owner: what the backend and the layout belong to; held. Throws as BlockStore::open does.
  KvCache(
      std::shared_ptr<void> owner,
      Backend& backend,
      const KvLayout& layout,
      const RootInfo& model,
      const Options& options);
  ~KvCache();

  const Digest& root() const { return root_; }
  BlockStore& store() { return *store_; }
  const std::shared_ptr<RowPager>& pager() const { return pager_; }
  CacheStats stats() const;
  /// Waits until everything worth writing is on disk; false when that took too long or failed.
  bool flush(std::chrono::milliseconds timeout);
  /// flush(), then no more writing; sessions go on without.
  bool close(std::chrono::milliseconds timeout);

  // For sessions; see session/session_cache.h.

  struct Found {
    std::vector<std::shared_ptr<KvBlock>> blocks;  // the last one filled in part, if need be
    std::vector<Digest> chain;                     // names of the full ones
    std::shared_ptr<const Checkpoint> anchor;
    bool on_disk = false;  // the anchor is
  };
  /// The longest known state that covers more than min_pos and at most `limit` of the tokens.
  /// `known`: names of the first blocks, as far as the caller has them; may_hit: count it.
  std::optional<Found> find(
      std::span<const int32_t> tokens,
      int64_t limit,
      int64_t min_pos,
      std::span<const Digest> known,
      bool may_hit);
  /// A block that is full now. Returns the one to use: an equal one if there is.
  std::shared_ptr<KvBlock> put_block(
      const Digest& id,
      const Digest& parent,
      int64_t end_pos,
      std::span<const int32_t> tokens,
      std::shared_ptr<KvBlock> block);
  void put_anchor(
      const Digest& id,
      const Digest& parent,
      std::span<const int32_t> tail_tokens,
      std::shared_ptr<const Checkpoint> checkpoint,
      std::shared_ptr<KvBlock> tail);
  enum class AnchorState { kGone, kWaiting, kTaken };
  /// Hands an anchor to the writer, which tries again while the disk refuses it. kWaiting: not now,
  /// the writer is busy.
  AnchorState write_anchor(const Digest& id);
  /// Writes the anchor if the session stays away from it for a while.
  void write_anchor_later(const Digest& id);
  /// Takes that back; false when it has been written.
  bool cancel_later(const Digest& id);
  uint64_t anchor_bytes(int64_t pos) const;
  uint64_t block_bytes() const;
  uint64_t ram_bytes() const { return ram_bytes_; }

  /// Lets go of what is beyond the RAM budget, if anything has come since the last time.
  void trim();
  void trim(uint64_t ram_bytes);
  /// Keeps a block's rows where they are until let_rows_go(); false: on disk only.
  bool hold_rows(KvBlock& block);
  void let_rows_go(KvBlock& block);
  /// The disk does not give the rows of a block: forgets it. Returns an equal one that has them, if
  /// there is.
  std::shared_ptr<KvBlock> replace_lost(const Digest& id, const std::shared_ptr<KvBlock>& lost);

 private:
  enum class Saved { kNo, kWaiting, kQueued, kYes };
  using Clock = std::chrono::steady_clock;
  struct BlockNode {
    std::shared_ptr<KvBlock> block;
    Digest parent;
    int64_t end_pos = 0;
    std::vector<int32_t> tokens;
    Saved saved = Saved::kNo;
    uint64_t last_use = 0, made = 0;
  };
  struct AnchorNode {
    std::shared_ptr<const Checkpoint> checkpoint;
    std::shared_ptr<KvBlock> tail;
    std::vector<int32_t> tokens;
    Digest parent;
    Saved saved = Saved::kNo;
    uint64_t last_use = 0;
  };
  struct Candidate {
    RecordKey anchor;
    int64_t pos = 0;
  };

  bool exists(RecordKind kind, const Digest& id);
  std::optional<Candidate> choose(
      std::span<const int32_t> tokens,
      int64_t limit,
      int64_t min_pos,
      std::span<const Digest> chain);
  bool load(
      const Candidate& candidate, std::span<const int32_t> tokens, size_t& n_good, Found& found);
  Decoded load_block(const Digest& id, KvBlock& block);
  bool load_anchor(const Candidate& candidate, Found& found);
  std::shared_ptr<KvBlock> new_block(bool with_rows) const;
  bool submit_block(const Digest& id, BlockNode& node);
  void submit_waiting();
  void block_written(const Digest& id, CommitResult result);
  void anchor_written(const Digest& id, CommitResult result);
  NewRecord encode_block(const Digest& id);
  NewRecord encode_anchor(const Digest& id);
  void put_on_hold();
  void check_saved();
  bool save_block(const Digest& id, BlockNode& node);
  void keep_house();

  std::shared_ptr<void> owner_;
  Backend& backend_;
  const KvLayout& layout_;
  const uint64_t ram_bytes_;
  const bool pageable_;  // the backend lets rows be fetched between ops
  const int pid_;
  Digest root_;
  std::shared_ptr<BlockStore> store_;
  std::shared_ptr<RowPager> pager_;
  IoPool io_;

  mutable std::mutex mutex_;
  std::unordered_map<Digest, BlockNode, DigestHash> blocks_;
  std::unordered_map<Digest, AnchorNode, DigestHash> anchors_;
  std::vector<Digest> waiting_;  // blocks that the writer has not taken yet, parents first
  std::unordered_map<Digest, Clock::time_point, DigestHash> later_;  // anchors, and when
  Clock::time_point hold_{};     // until then nothing waiting is offered to the writer
  Clock::duration hold_time_{};  // grows while the disk refuses
  uint64_t n_failed_ = 0;
  uint64_t tick_ = 0;
  bool changed_ = true;  // since the last trim
  bool closed_ = false;
  CacheStats stats_;
  struct Threads {
    std::condition_variable wake;
    std::thread housekeeper;
  };
  std::shared_ptr<StoreWriter> writer_;
  std::unique_ptr<Threads> threads_ = std::make_unique<Threads>();
};

}  // namespace grebe
