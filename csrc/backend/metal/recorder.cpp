#include "backend/metal/recorder.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace grebe::metal {

constexpr uint32_t kMaxThreadgroupBytes = 32768;  // of every Apple GPU

// ---- Builder

Recorder::Builder::Builder(Recorder& recorder, const char* library, const char* kernel)
    : recorder_(recorder), library_(library), kernel_(kernel) {
  dispatch_.first_binding = static_cast<uint32_t>(recorder.bindings_.size());
}

Recorder::Builder& Recorder::Builder::constant(uint32_t index, uint32_t value) {
  constants_.push_back({index, value});
  return *this;
}

Recorder::Builder& Recorder::Builder::args_bytes(const void* args, uint64_t n_bytes) {
  std::vector<uint8_t>& bytes = recorder_.bytes_;
  bytes.resize((bytes.size() + 15) / 16 * 16);
  dispatch_.args_offset = static_cast<uint32_t>(bytes.size());
  dispatch_.args_bytes = static_cast<uint32_t>(n_bytes);
  const auto* p = static_cast<const uint8_t*>(args);
  bytes.insert(bytes.end(), p, p + n_bytes);
  return *this;
}

Recorder::Builder& Recorder::Builder::bind(
    uint32_t index, const void* data, uint64_t n_bytes, bool writes) {
  const BufferTable::Place place = recorder_.buffers_.find(data, n_bytes);
  bindings_.push_back({place.buffer, index, place.offset});
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  if (n_bytes > 0) ranges_.push_back({begin, begin + n_bytes, writes});
  return *this;
}

Recorder::Builder& Recorder::Builder::read(uint32_t index, const void* data, uint64_t n_bytes) {
  return data ? bind(index, data, n_bytes, false) : bind(index, recorder_.nothing(), 0, false);
}

Recorder::Builder& Recorder::Builder::write(uint32_t index, void* data, uint64_t n_bytes) {
  return data ? bind(index, data, n_bytes, true) : bind(index, recorder_.nothing(), 0, false);
}

Recorder::Builder& Recorder::Builder::read_write(uint32_t index, void* data, uint64_t n_bytes) {
  return write(index, data, n_bytes);
}

Recorder::Builder& Recorder::Builder::weight(uint32_t index, const void* data) {
  return bind(index, data ? data : recorder_.nothing(), 0, false);
}

Recorder::Builder& Recorder::Builder::table_bytes(
    uint32_t index, const void* data, uint64_t n_bytes) {
  void* copy = recorder_.tables_.take(recorder_.buffers_, std::max<uint64_t>(n_bytes, 1));
  if (n_bytes > 0) std::memcpy(copy, data, n_bytes);
  return bind(index, copy, 0, false);
}

Recorder::Builder& Recorder::Builder::indirect(const void* data, uint64_t n_bytes, bool writes) {
  const BufferTable::Place place = recorder_.buffers_.find(data, n_bytes);
  recorder_.indirect_[place.buffer] |= writes;
  writes_blocks_ |= writes;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  ranges_.push_back({begin, begin + n_bytes, writes});
  return *this;
}

uint64_t Recorder::Builder::blocks(uint8_t* const* blocks, int64_t n) {
  Recorder& r = recorder_;
  reads_blocks_ = true;
  const auto at = r.blocks_.find(blocks);
  if (at != r.blocks_.end() && at->second.n >= n) return at->second.address;
  const uint64_t n_bytes = sizeof(uint64_t) * std::max<int64_t>(n, 1);
  auto* table = static_cast<uint64_t*>(r.tables_.take(r.buffers_, n_bytes));
  for (int64_t i = 0; i < n; i++) {
    const BufferTable::Place place = r.buffers_.find(blocks[i], 1);
    r.indirect_.emplace(place.buffer, false);
    table[i] = place.gpu_address;
  }
  const BufferTable::Place place = r.buffers_.find(table, n_bytes);
  r.indirect_.emplace(place.buffer, false);
  r.blocks_[blocks] = {n, place.gpu_address};
  return place.gpu_address;
}

Recorder::Builder& Recorder::Builder::threadgroup_memory(uint64_t n_bytes) {
  dispatch_.threadgroup_bytes = static_cast<uint32_t>((n_bytes + 15) / 16 * 16);
  return *this;
}

Recorder::Builder& Recorder::Builder::reads_bytes(uint64_t n) {
  reads_ += n;
  return *this;
}

void Recorder::Builder::run(
    uint64_t groups_x, uint64_t groups_y, uint64_t groups_z, uint32_t threads) {
  Recorder& r = recorder_;
  const uint64_t groups[3] = {groups_x, groups_y, groups_z};
  for (int i = 0; i < 3; i++) {
    if (groups[i] == 0) return;
    if (groups[i] > UINT32_MAX) throw Error("internal error: a grid of more than 2^32 groups");
    dispatch_.groups[i] = static_cast<uint32_t>(groups[i]);
  }
  dispatch_.threads[0] = threads;
  if (dispatch_.threadgroup_bytes > kMaxThreadgroupBytes) {
    throw BackendError(
        "metal: kernel " + std::string(kernel_) + " needs " +
            std::to_string(dispatch_.threadgroup_bytes) +
            " bytes of threadgroup memory for a model of these dimensions; there are " +
            std::to_string(kMaxThreadgroupBytes),
        kernel_);
  }
  const PipelineCache::Pipeline pipeline =
      r.pipelines_.pipeline(library_, kernel_, {constants_.data(), constants_.size()});
  if (threads > pipeline.max_threads) {
    throw BackendError(
        "metal: kernel " + std::string(kernel_) + " can run " +
            std::to_string(pipeline.max_threads) + " threads in a threadgroup here; it needs " +
            std::to_string(threads),
        kernel_);
  }
  dispatch_.pipeline = pipeline.id;
  dispatch_.first_binding = static_cast<uint32_t>(r.bindings_.size());
  dispatch_.n_bindings = static_cast<uint32_t>(bindings_.size());
  r.bindings_.insert(r.bindings_.end(), bindings_.begin(), bindings_.end());
  dispatch_.barrier = std::any_of(
      ranges_.begin(), ranges_.end(), [&](const Range& range) { return r.conflicts(range); });
  if (reads_blocks_ && r.pending_block_writes_) dispatch_.barrier = 1;
  if (dispatch_.barrier) {
    r.pending_.clear();
    r.pending_block_writes_ = false;
  }
  r.pending_block_writes_ |= writes_blocks_;
  r.pending_.insert(r.pending_.end(), ranges_.begin(), ranges_.end());
  r.dispatches_.push_back(dispatch_);
  r.records_.push_back({kernel_, reads_, dispatch_.barrier != 0});
}

// ---- Recorder

Recorder::Recorder(BufferTable& buffers, PipelineCache& pipelines, bool exact)
    : buffers_(buffers), pipelines_(pipelines), exact_(exact) {}

Recorder::~Recorder() {
  tables_.free(buffers_);
  scratch_.free(buffers_);
  buffers_.release(nothing_);
}

bool Recorder::conflicts(const Builder::Range& range) const {
  return std::any_of(pending_.begin(), pending_.end(), [&](const Builder::Range& other) {
    return (range.writes || other.writes) && range.begin < other.end && other.begin < range.end;
  });
}

void* Recorder::nothing() {
  if (!nothing_) nothing_ = buffers_.allocate(4096, "a placeholder");
  return nothing_;
}

uint64_t Recorder::address(const void* data) const { return buffers_.find(data, 1).gpu_address; }

void* Recorder::scratch(uint64_t n_bytes) { return scratch_.take(buffers_, n_bytes); }

CommandList Recorder::list(const char* label) {
  indirect_list_.clear();
  for (const auto& [buffer, writes] : indirect_) indirect_list_.push_back({buffer, writes});
  CommandList out;
  out.dispatches = dispatches_.data();
  out.n_dispatches = dispatches_.size();
  out.bindings = bindings_.data();
  out.bytes = bytes_.data();
  out.indirect = indirect_list_.data();
  out.n_indirect = indirect_list_.size();
  out.label = label;
  return out;
}

void Recorder::clear() {
  dispatches_.clear();
  bindings_.clear();
  bytes_.clear();
  indirect_.clear();
  pending_.clear();
  pending_block_writes_ = false;
  blocks_.clear();
  records_.clear();
  tables_.start_again(buffers_);
  scratch_.start_again(buffers_);
}

// ---- Arena

void* Recorder::Arena::take(BufferTable& buffers, uint64_t n_bytes) {
  n_bytes = (n_bytes + 255) / 256 * 256;
  while (i_chunk_ < chunks_.size() && chunks_[i_chunk_].n_bytes - used_ < n_bytes) {
    i_chunk_++;
    used_ = 0;
  }
  if (i_chunk_ == chunks_.size()) {
    const uint64_t size = std::max({n_bytes, kChunkBytes, std::exchange(next_bytes_, 0)});
    chunks_.reserve(chunks_.size() + 1);
    chunks_.push_back({static_cast<uint8_t*>(buffers.allocate(size, "scratch buffers")), size});
    n_bytes_ += size;
    used_ = 0;
  }
  used_ += n_bytes;
  return chunks_[i_chunk_].data + used_ - n_bytes;
}

void Recorder::Arena::start_again(BufferTable& buffers) {
  rewind();
  if (chunks_.size() < 2) return;
  next_bytes_ = n_bytes_;
  free(buffers);
}

void Recorder::Arena::free(BufferTable& buffers) {
  for (const Chunk& chunk : chunks_) buffers.release(chunk.data);
  chunks_.clear();
  n_bytes_ = 0;
}

}  // namespace grebe::metal
