#include "store/index.h"

#include <algorithm>

namespace grebe {
namespace {

void erase_one(std::vector<Record*>& list, const Record* record) {
  const auto it = std::find(list.begin(), list.end(), record);
  if (it == list.end()) return;
  *it = list.back();
  list.pop_back();
}

}  // namespace

bool Index::add_root(const RootInfo& info) {
  if (!roots_.emplace(info.id, Root{info, {}, {}}).second) return false;
  root_order_.push_back(info.id);
  return true;
}

std::vector<RootInfo> Index::root_infos() const {
  std::vector<RootInfo> out;
  for (const Digest& id : root_order_) out.push_back(roots_.at(id).info);
  return out;
}

Record* Index::find(const RecordKey& key) const {
  const auto it = records_.find(key);
  return it == records_.end() ? nullptr : it->second.get();
}

bool Index::has_parent(const RecordInfo& info) const {
  if (!roots_.contains(info.root)) return false;
  if (info.parent == info.root) return true;
  const Record* parent = find({RecordKind::kBlock, info.parent});
  return parent && parent->info.root == info.root;
}

Record& Index::put(
    const RecordInfo& info, const Location& location, uint64_t last_use, uint32_t hits) {
  if (Record* known = find(info.key)) {
    unplace(*known);
    place(*known, location);
    return *known;
  }
  auto made = std::make_unique<Record>();
  Record& r = *made;
  r.info = info;
  r.last_use = last_use;
  r.hits = hits;
  r.parent = info.parent == info.root ? nullptr : find({RecordKind::kBlock, info.parent});
  Root& root = roots_.at(info.root);
  if (r.is_anchor())
    (r.parent ? r.parent->anchors : root.anchors).push_back(&r);
  else
    (r.parent ? r.parent->blocks : root.blocks).push_back(&r);
  n_anchors_ += r.is_anchor();
  records_.emplace(info.key, std::move(made));
  place(r, location);
  advance_clock(last_use);
  return r;
}

void Index::place(Record& r, const Location& location) {
  r.location = location;
  SegmentState& segment = segments[location.segment];
  segment.live += r.stored_bytes();
  segment.end = std::max(segment.end, location.offset + r.stored_bytes());
  live_bytes_ += r.stored_bytes();
}

void Index::unplace(const Record& r) {
  segments[r.location.segment].live -= r.stored_bytes();
  live_bytes_ -= r.stored_bytes();
}

uint64_t Index::drop(Record& top, std::vector<RecordKey>* keys) {
  std::vector<Record*> order{&top};  // grows while it is walked: a tree can be deep
  for (size_t i = 0; i < order.size(); i++) {
    order.insert(order.end(), order[i]->blocks.begin(), order[i]->blocks.end());
    order.insert(order.end(), order[i]->anchors.begin(), order[i]->anchors.end());
  }
  if (top.parent) {
    erase_one(top.is_anchor() ? top.parent->anchors : top.parent->blocks, &top);
  } else {
    Root& root = roots_.at(top.info.root);
    erase_one(top.is_anchor() ? root.anchors : root.blocks, &top);
  }
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    const RecordKey key = (*it)->info.key;
    unplace(**it);
    n_anchors_ -= (*it)->is_anchor();
    if (keys) keys->push_back(key);
    records_.erase(key);
  }
  return order.size();
}

uint64_t Index::drop_root(const Digest& id) {
  const auto it = roots_.find(id);
  if (it == roots_.end()) return 0;
  uint64_t n = 0;
  for (auto* list : {&it->second.blocks, &it->second.anchors})
    while (!list->empty()) n += drop(*list->back());
  roots_.erase(it);
  root_order_.erase(std::find(root_order_.begin(), root_order_.end(), id));
  return n;
}

uint64_t Index::drop_segment(uint32_t number) {
  uint64_t n = 0;
  std::vector<RecordKey> keys;
  for (const Record* r : in_segment(number)) keys.push_back(r->info.key);
  for (const RecordKey& key : keys)
    if (Record* r = find(key)) n += drop(*r);  // or it has gone with its parent
  segments.erase(number);
  return n;
}

std::vector<Record*> Index::parents_first() const {
  std::vector<Record*> order;
  order.reserve(records_.size());
  for (const Digest& id : root_order_) {
    const Root& root = roots_.at(id);
    order.insert(order.end(), root.blocks.begin(), root.blocks.end());
    order.insert(order.end(), root.anchors.begin(), root.anchors.end());
  }
  for (size_t i = 0; i < order.size(); i++) {
    order.insert(order.end(), order[i]->blocks.begin(), order[i]->blocks.end());
    order.insert(order.end(), order[i]->anchors.begin(), order[i]->anchors.end());
  }
  return order;
}

std::vector<Record*> Index::in_segment(uint32_t number) const {
  std::vector<Record*> out;
  for (const auto& [key, record] : records_)
    if (record->location.segment == number) out.push_back(record.get());
  std::sort(out.begin(), out.end(), [](const Record* a, const Record* b) {
    return a->location.offset < b->location.offset;
  });
  return out;
}

uint64_t Index::segment_bytes() const {
  uint64_t n = 0;
  for (const auto& [number, segment] : segments) n += segment.end;
  return n;
}

}  // namespace grebe
