// The merge half of byte-level BPE: pairs of token ids, ranked; flat tables, no strings.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace grebe {

/// (left, right) -> rank and merged id. Open addressing at a load of at most one half.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  explicit MergeTable(size_t n_merges)
      : slots_(std::bit_ceil(2 * n_merges + 2)),
        shift_(64 - std::countr_zero(slots_.size())),
        merged_(n_merges) {}

  /// A repeated pair takes the later rank, as in the reference.
  void insert(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
    Slot& slot = slots_[find(left, right)];
    slot = {left, right, rank};
    merged_[rank] = merged;
  }
  uint32_t rank(int32_t left, int32_t right) const { return slots_[find(left, right)].rank; }
  size_t size() const { return merged_.size(); }  ///< ranks are below
  int32_t merged(uint32_t rank) const { return merged_[rank]; }

 private:
  struct Slot {
    int32_t left = -1, right = -1;
    uint32_t rank = kNoRank;
  };

  size_t find(int32_t left, int32_t right) const {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    size_t i = static_cast<size_t>((key ^ key >> 29) * 0x9E3779B97F4A7C15u >> shift_);
    while (slots_[i].rank != kNoRank && (slots_[i].left != left || slots_[i].right != right)) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return i;
  }

  std::vector<Slot> slots_;
  int shift_;
  std::vector<int32_t> merged_;  // by rank
};

/// Positions by rank, lowest rank first. Buckets with a two-level bitmap: constant time per
/// operation where a heap of a million entries misses the cache at every level.
class RankQueue {
 public:
  explicit RankQueue(size_t n_ranks)
      : heads_(n_ranks, -1), used_(n_ranks / 64 + 1), used_words_(n_ranks / 4096 + 1) {}

  void push(uint32_t rank, int32_t pos) {
    int32_t node = free_;
    if (node >= 0) {
      free_ = nodes_[node].next;
    } else {
      node = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
    }
    nodes_[node] = {pos, heads_[rank]};
    heads_[rank] = node;
    used_[rank / 64] |= uint64_t{1} << rank % 64;
    used_words_[rank / 4096] |= uint64_t{1} << rank / 64 % 64;
  }

  /// Removes all positions of the lowest rank and returns them in ascending order; false when the
  /// queue is empty.
  bool take(uint32_t& rank, std::vector<int32_t>& positions) {
    size_t top = 0;
    while (top < used_words_.size() && used_words_[top] == 0) ++top;
    if (top == used_words_.size()) return false;
    const size_t word = top * 64 + std::countr_zero(used_words_[top]);
    rank = static_cast<uint32_t>(word * 64 + std::countr_zero(used_[word]));
    positions.clear();
    for (int32_t node = heads_[rank]; node >= 0;) {
      positions.push_back(nodes_[node].pos);
      const int32_t next = nodes_[node].next;
      nodes_[node].next = free_;
      free_ = node;
      node = next;
    }
    std::reverse(positions.begin(), positions.end());  // mostly pushed in ascending order
    if (!std::is_sorted(positions.begin(), positions.end()))
      std::sort(positions.begin(), positions.end());
    heads_[rank] = -1;
    used_[word] &= used_[word] - 1;
    if (used_[word] == 0) used_words_[top] &= used_words_[top] - 1;
    return true;
  }

 private:
  struct Node {
    int32_t pos, next;
  };
  std::vector<int32_t> heads_;  // by rank: first node, -1 = none
  std::vector<uint64_t> used_;  // bit per rank with positions
  std::vector<uint64_t> used_words_;
  std::vector<Node> nodes_;
  int32_t free_ = -1;
};

/// Applies merges to one piece: always the pair of lowest rank, leftmost among equals. Holds
/// scratch memory; one per call of encode.
class BpeMerger {
 public:
  explicit BpeMerger(const MergeTable& table) : table_(table) {}

  /// Merges `ids` (at least one) in place.
  void merge(std::vector<int32_t>& ids) {
    if (ids.size() <= kShort) {
      merge_short(ids);
    } else {
      merge_long(ids);
    }
  }

 private:
  static constexpr uint32_t kNoRank = MergeTable::kNoRank;
  // Up to here scanning all ranks for the lowest beats the queue (measured on Chinese text, whose
  // pieces are whole clauses).
  static constexpr size_t kShort = 96;

  void merge_short(std::vector<int32_t>& ids) {
    uint32_t ranks[kShort];  // ranks[i]: of the pair (i, i + 1)
    size_t n = ids.size();
    for (size_t i = 0; i + 1 < n; ++i) ranks[i] = table_.rank(ids[i], ids[i + 1]);
    while (n > 1) {
      size_t at = 0;
      uint32_t lowest = ranks[0];
      for (size_t i = 1; i + 1 < n; ++i) {
        if (ranks[i] < lowest) lowest = ranks[i], at = i;
      }
      if (lowest == kNoRank) break;
      ids[at] = table_.merged(lowest);
      --n;
      for (size_t i = at + 1; i < n; ++i) ids[i] = ids[i + 1];
      for (size_t i = at + 1; i + 1 < n; ++i) ranks[i] = ranks[i + 1];
      if (at > 0) ranks[at - 1] = table_.rank(ids[at - 1], ids[at]);
      if (at + 1 < n) ranks[at] = table_.rank(ids[at], ids[at + 1]);
    }
    ids.resize(n);
  }

  // A linked list of symbols: linear for a megabyte without a break. A queue entry is stale when
  // the pair at its position has changed since; then the rank there differs, because a changed pair
  // spells a longer text.
  void merge_long(std::vector<int32_t>& ids) {
    const auto n = static_cast<int32_t>(ids.size());
    if (!queue_) queue_.emplace(table_.size());
    symbols_.resize(ids.size());
    for (int32_t i = 0; i < n; ++i) symbols_[i] = {ids[i], i - 1, i + 1 < n ? i + 1 : -1, kNoRank};
    const auto update = [&](int32_t i) {
      Symbol& symbol = symbols_[i];
      symbol.rank = symbol.next < 0 ? kNoRank : table_.rank(symbol.id, symbols_[symbol.next].id);
      if (symbol.rank != kNoRank) queue_->push(symbol.rank, i);
      return symbol.rank;
    };
    for (int32_t i = 0; i < n; ++i) update(i);
    uint32_t rank = 0;
    while (queue_->take(rank, positions_)) {
      for (size_t k = 0; k < positions_.size(); ++k) {
        const int32_t i = positions_[k];
        Symbol& symbol = symbols_[i];
        if (symbol.rank != rank) continue;
        Symbol& gone = symbols_[symbol.next];
        symbol.id = table_.merged(rank);
        symbol.next = gone.next;
        gone.rank = kNoRank;
        if (symbol.next >= 0) symbols_[symbol.next].previous = i;
        uint32_t created = update(i);
        if (symbol.previous >= 0) created = std::min(created, update(symbol.previous));
        if (created <
            rank) {  // unusual merge lists: the new pair comes first, then the rest of these
          while (++k < positions_.size()) queue_->push(rank, positions_[k]);
        }
      }
    }
    ids.clear();
    for (int32_t i = 0; i >= 0; i = symbols_[i].next) ids.push_back(symbols_[i].id);
  }

  struct Symbol {
    int32_t id, previous, next;
    uint32_t rank;  // of the pair (this, next); kNoRank when there is none or this symbol was
                    // merged away
  };
  const MergeTable& table_;
  std::optional<RankQueue> queue_;
  std::vector<Symbol> symbols_;
  std::vector<int32_t> positions_;
};

}  // namespace grebe
