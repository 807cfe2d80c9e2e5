// What is worth keeping.
//
// An anchor is worth the tokens that need not be computed again when a session goes on from it,
// times how likely that is, for the bytes that would be free without it. Blocks are worth what the
// anchors at or below them are.
#pragma once

#include <cstdint>
#include <unordered_set>
#include <vector>

#include "store/index.h"

namespace grebe {

/// So many ticks of the clock a record is not evicted as long as there is another: a session that
/// writes has blocks that no anchor needs yet. In a store of few records, half as many as those.
constexpr uint64_t kProtectedTicks = 256;

/// Blocks that must stay with the anchors on them: what is being written follows them.
using PinnedBlocks = std::unordered_set<const Record*>;
/// Adds a record's block and all that it follows.
void pin(PinnedBlocks& pinned, const Record* block);

/// Drops the records of least value until so many bytes of segments are dead, or nothing is left
/// that may go. Returns their keys, those that follow first.
std::vector<RecordKey> evict(Index& index, uint64_t bytes, const PinnedBlocks& pinned);

/// The segment whose records are worth least for its bytes, with what follows them anywhere; 0 when
/// pinned blocks are among those of each. For when nothing can be moved.
uint32_t cheapest_segment(const Index& index, const PinnedBlocks& pinned);

}  // namespace grebe
