// What ties one session to the cache: names of its blocks, and which points are worth an anchor.
//
// An anchor costs about 3.4 MB on Flash, as much as the rows of 1,000 tokens, so writing is
// rationed: of the points that a session marks, one is written at once if it lies 2,048 tokens
// after the last one; the end of a turn otherwise when the session stays away from it for a second;
// and all anchors together stay below 42 % of the bytes of the session's blocks, with four free of
// charge. In RAM every marked point is kept. The last one is always written when the session is
// closed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "session/kv_cache.h"

namespace grebe {

constexpr int64_t kAnchorGrid = 8192;  // tokens; an anchor at every multiple

class SessionCache {
 public:
  explicit SessionCache(std::shared_ptr<KvCache> cache) : cache_(std::move(cache)) {}
  ~SessionCache();
  SessionCache(const SessionCache&) = delete;
  SessionCache& operator=(const SessionCache&) = delete;
  /// For a fork: the same past, a budget of its own.
  std::unique_ptr<SessionCache> fork() const;

  const std::shared_ptr<KvCache>& cache() const { return cache_; }

  /// Puts a known state that covers more of the tokens than `min_pos`, at most `limit`, in place of
  /// kv's. Returns its position, or nothing (kv is as before). n_common: of the tokens agree with
  /// what kv covers.
  std::optional<int64_t> resume(
      KvState& kv,
      std::span<const int32_t> tokens,
      int64_t n_common,
      int64_t limit,
      int64_t min_pos);
  /// kv went back to `pos`.
  void truncate(int64_t pos);
  /// kv covers `tokens` now: names and shares blocks that have become full. `made`: the step's new
  /// checkpoints; those at `marks` and on the grid become anchors.
  void appended(
      KvState& kv,
      std::span<const int32_t> tokens,
      std::span<const std::shared_ptr<Checkpoint>> made,
      std::span<const int64_t> marks);
  /// Block i of kv has lost its rows: an equal one that has them, or null.
  std::shared_ptr<KvBlock> replace_lost(const KvState& kv, size_t i);
  /// While the session computes rows again that the disk lost: its blocks keep them in RAM.
  void set_recovering(bool recovering) { recovering_ = recovering; }
  /// A turn has ended here: the session may come back to this point.
  void turn_ended(const KvState& kv, std::span<const int32_t> tokens);

 private:
  const Digest& parent_of(size_t i_block) const;
  void mark(
      const KvState& kv,
      std::span<const int32_t> tokens,
      const std::shared_ptr<const Checkpoint>& checkpoint,
      bool end);
  void forget_last();

  std::shared_ptr<KvCache> cache_;
  std::vector<Digest> chain_;  // of full blocks
  int64_t anchored_ = 0;       // position of the last anchor that is written
  uint64_t block_bytes_ = 0, anchor_bytes_ = 0;
  bool recovering_ = false;
  std::optional<Digest> last_;  // the last marked point, if it is not written
  uint64_t last_bytes_ = 0;     // counted for it already
};

}  // namespace grebe
