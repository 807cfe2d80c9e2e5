// The merge half of byte-level BPE: pairs of token ids, ranked; flat tables, no strings.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace grebe {

/// (left, right) -> rank and merged id. Open addressing at a load of at most one half.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = UINT32_MAX;

  explicit MergeTable(size_t n_merges)
      : slots_(std::bit_ceil(2 * n_merges + 2)), shift_(64 - std::countr_zero(slots_.size())), merged_(n_merges) {}

  /// A repeated pair takes the later rank, as in the reference.
  void insert(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
    Slot& slot = slots_[find(left, right)];
    slot = {left, right, rank};
    merged_[rank] = merged;
  }
  uint32_t rank(int32_t left, int32_t right) const { return slots_[find(left, right)].rank; }
  int32_t merged(uint32_t rank) const { return merged_[rank]; }

 private:
  struct Slot {
    int32_t left = -1, right = -1;
    uint32_t rank = kNoRank;
  };

  size_t find(int32_t left, int32_t right) const {
    const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
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

/// Applies merges to one piece: always the pair of lowest rank, leftmost among equals. Holds scratch memory; one per call
/// of encode.
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
  // Up to here scanning all ranks for the lowest beats a heap (measured on Chinese text, whose pieces are whole clauses).
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

  // A linked list of symbols and a heap of (rank, position): n log n for a megabyte without a break. An entry is stale when
  // the pair at its position has changed since; then the rank there differs (a changed pair spells a longer text).
  void merge_long(std::vector<int32_t>& ids) {
    const size_t n = ids.size();
    symbols_.resize(n);
    heap_.clear();
    const auto push = [&](size_t i, uint32_t rank) {
      symbols_[i].rank = rank;
      if (rank != kNoRank) heap_.push_back(static_cast<uint64_t>(rank) << 32 | i);
    };
    for (size_t i = 0; i < n; ++i) {
      symbols_[i].previous = static_cast<int32_t>(i) - 1;
      symbols_[i].next = i + 1 < n ? static_cast<int32_t>(i) + 1 : -1;
      push(i, i + 1 < n ? table_.rank(ids[i], ids[i + 1]) : kNoRank);
    }
    std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
    const auto update = [&](int32_t i) {
      const int32_t next = symbols_[i].next;
      push(i, next < 0 ? kNoRank : table_.rank(ids[i], ids[next]));
      if (symbols_[i].rank != kNoRank) std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    };
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      const auto rank = static_cast<uint32_t>(heap_.back() >> 32);
      const auto i = static_cast<int32_t>(heap_.back() & UINT32_MAX);
      heap_.pop_back();
      if (symbols_[i].rank != rank) continue;
      const int32_t gone = symbols_[i].next;
      const int32_t after = symbols_[gone].next;
      ids[i] = table_.merged(rank);
      symbols_[i].next = after;
      symbols_[gone].rank = kNoRank;
      if (after >= 0) symbols_[after].previous = i;
      update(i);
      if (symbols_[i].previous >= 0) update(symbols_[i].previous);
    }
    size_t n_left = 0;
    for (int32_t i = 0; i >= 0; i = symbols_[i].next) ids[n_left++] = ids[i];
    ids.resize(n_left);
  }

  struct Symbol {
    int32_t previous, next;
    uint32_t rank;  // of the pair (this, next); kNoRank when there is none or this symbol was merged away
  };
  const MergeTable& table_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> heap_;
};

}  // namespace grebe
