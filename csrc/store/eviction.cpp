#include "store/eviction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

namespace grebe {
namespace {

// A segment's cost of dropping is computed for so many, those with the least data.
constexpr size_t kMaxDropCandidates = 16;

// Tokens that the anchor is likely to save.
double worth(const Index& index, const Record& anchor) {
  int64_t above = -1;  // position of the nearest anchor that a session could go on from instead
  for (const Record* b = anchor.parent; b && above < 0; b = b->parent)
    for (const Record* a : b->anchors)
      if (a->info.pos < anchor.info.pos) above = std::max(above, a->info.pos);
  const double saved = static_cast<double>(anchor.info.pos - std::max<int64_t>(above, 0));
  const double age = static_cast<double>(index.clock() - anchor.last_use);
  return saved * (1 + std::log2(1.0 + anchor.hits)) / (kProtectedTicks + age);
}

class Eviction {
 public:
  Eviction(Index& index, uint64_t bytes, const PinnedBlocks& pinned)
      : index_(index), pinned_(pinned), wanted_(bytes) {
    records_ = index.parents_first();
    protected_ticks_ = std::min<uint64_t>(kProtectedTicks, records_.size() / 2);
    for (Record* r : records_) r->n_needing = 0;
    for (const Record* r : records_)
      if (r->is_anchor())
        for (Record* b = r->parent; b; b = b->parent) b->n_needing++;
  }

  std::vector<RecordKey> run() {
    for (const bool also_protected : {false, true}) {
      also_protected_ = also_protected;
      if (freed_ < wanted_) evict_unneeded_blocks();
      if (freed_ < wanted_) evict_anchors();
    }
    return std::move(keys_);
  }

 private:
  struct Candidate {
    double value;
    Record* record;
    bool operator<(const Candidate& o) const { return value > o.value; }  // the least on top
  };

  bool is_protected(const Record& r) const {
    return !also_protected_ && index_.clock() - r.last_use < protected_ticks_;
  }
  bool may_drop(const Record& block) const {
    return block.n_needing == 0 && block.blocks.empty() && block.anchors.empty() &&
           !pinned_.contains(&block) && !is_protected(block);
  }
  void drop(Record& r) {
    freed_ += r.stored_bytes();
    gone_.insert(&r);
    index_.drop(r, &keys_);
  }

  void evict_unneeded_blocks() {
    std::priority_queue<Candidate> queue;
    const auto offer = [&](Record* b) {
      if (b && may_drop(*b)) queue.push({static_cast<double>(b->last_use), b});
    };
    for (Record* r : records_)
      if (!gone_.contains(r) && !r->is_anchor()) offer(r);
    while (freed_ < wanted_ && !queue.empty()) {
      Record* const block = queue.top().record;
      Record* const parent = block->parent;
      queue.pop();
      drop(*block);
      offer(parent);
    }
  }

  // Values change as others go: one that has become more worth than the next in line waits.
  void evict_anchors() {
    std::priority_queue<Candidate> queue;
    for (Record* r : records_)
      if (!gone_.contains(r) && r->is_anchor() && !is_protected(*r) && !pinned_.contains(r->parent))
        queue.push({value(*r), r});
    while (freed_ < wanted_ && !queue.empty()) {
      Record* const anchor = queue.top().record;
      queue.pop();
      const double now = value(*anchor);
      if (!queue.empty() && now > queue.top().value) {
        queue.push({now, anchor});
        continue;
      }
      Record* block = anchor->parent;
      drop(*anchor);
      for (Record* b = block; b; b = b->parent) b->n_needing--;
      while (block && may_drop(*block)) {
        Record* const parent = block->parent;
        drop(*block);
        block = parent;
      }
    }
  }

  double value(const Record& anchor) const {
    uint64_t bytes = anchor.stored_bytes();
    for (const Record* b = anchor.parent; b && b->n_needing == 1; b = b->parent)
      bytes += b->stored_bytes();
    return worth(index_, anchor) / static_cast<double>(bytes);
  }

  Index& index_;
  const PinnedBlocks& pinned_;
  const uint64_t wanted_;
  uint64_t freed_ = 0, protected_ticks_ = 0;
  bool also_protected_ = false;
  std::vector<Record*> records_;
  std::unordered_set<const Record*> gone_;
  std::vector<RecordKey> keys_;
};

}  // namespace

void pin(PinnedBlocks& pinned, const Record* block) {
  for (; block; block = block->parent)
    if (!pinned.insert(block).second) return;
}

std::vector<RecordKey> evict(Index& index, uint64_t bytes, const PinnedBlocks& pinned) {
  return Eviction(index, bytes, pinned).run();
}

namespace {

// What goes with the records of a segment: worth of the anchors, infinite with a pinned block.
double cost_of_dropping(const Index& index, uint32_t segment, const PinnedBlocks& pinned) {
  std::vector<const Record*> order;
  for (const Record* r : index.in_segment(segment)) order.push_back(r);
  std::unordered_set<const Record*> seen(order.begin(), order.end());
  double cost = 0;
  for (size_t i = 0; i < order.size(); i++) {
    const Record& r = *order[i];
    if (pinned.contains(&r)) return std::numeric_limits<double>::infinity();
    if (r.is_anchor()) cost += worth(index, r);
    for (const auto* list : {&r.blocks, &r.anchors})
      for (const Record* child : *list)
        if (seen.insert(child).second) order.push_back(child);
  }
  return cost;
}

}  // namespace

uint32_t cheapest_segment(const Index& index, const PinnedBlocks& pinned) {
  std::vector<std::pair<uint64_t, uint32_t>> by_live;
  for (const auto& [number, segment] : index.segments) by_live.push_back({segment.live, number});
  std::sort(by_live.begin(), by_live.end());
  by_live.resize(std::min(by_live.size(), kMaxDropCandidates));
  uint32_t cheapest = 0;
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [live, number] : by_live) {
    const double bytes = static_cast<double>(index.segments.at(number).end);
    const double cost = cost_of_dropping(index, number, pinned) / bytes;
    if (cost >= least) continue;
    least = cost;
    cheapest = number;
  }
  return cheapest;
}

}  // namespace grebe
