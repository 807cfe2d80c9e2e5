#include "backend/metal/buffers.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace grebe::metal {
namespace {

// Left to the system and to what other programs draw; plans that used all of the working set were
// seen to pass at load and to die in the first long prefill.
constexpr uint64_t kReserve = uint64_t{2} << 30;

std::string gib(uint64_t n_bytes) {
  const uint64_t tenths = n_bytes * 10 >> 30;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GiB";
}

uint64_t round_up(uint64_t x, uint64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace

BufferTable::~BufferTable() {
  for (const auto& [address, buffer] : memory_) device_.free_buffer(buffer.id);
  for (const auto& [address, buffer] : views_) device_.free_buffer(buffer.id);
}

void BufferTable::require_room(uint64_t n_bytes, const std::string& what) const {
  const uint64_t limit = device_.info().working_set_bytes;
  const uint64_t budget = limit > 2 * kReserve ? limit - kReserve : limit / 2;
  if (n_bytes <= budget && used_ <= budget - n_bytes) return;
  throw OutOfMemory(
      "out of GPU memory: " + what + " needs " + gib(n_bytes) + ", " + gib(used_) +
          " are in use, and the budget is " + gib(budget) + " (the device recommends at most " +
          gib(limit) +
          "). Use a smaller quantization or context, or raise the limit: sudo sysctl " +
          "iogpu.wired_limit_mb=" + std::to_string((used_ + n_bytes + kReserve) >> 20),
      n_bytes);
}

void* BufferTable::allocate(uint64_t n_bytes, const char* what) {
  std::lock_guard lock(mutex_);
  n_bytes = std::max<uint64_t>(n_bytes, 16);
  require_room(n_bytes, what);
  DeviceBuffer buffer;
  const Status status = device_.new_buffer(n_bytes, &buffer);
  if (!status.ok()) {
    throw OutOfMemory(
        "out of GPU memory: " + std::to_string(n_bytes) + " bytes for " + what + ": " +
            status.message,
        n_bytes);
  }
  try {
    memory_.emplace(reinterpret_cast<uintptr_t>(buffer.contents), buffer);
  } catch (...) {
    device_.free_buffer(buffer.id);
    throw;
  }
  used_ += n_bytes;
  return buffer.contents;
}

void BufferTable::release(void* memory) noexcept {
  std::lock_guard lock(mutex_);
  const auto at = memory_.find(reinterpret_cast<uintptr_t>(memory));
  if (at == memory_.end()) return;
  used_ -= at->second.n_bytes;
  device_.free_buffer(at->second.id);
  memory_.erase(at);
}

void BufferTable::map_file(std::span<const uint8_t> file, uint64_t longest) {
  std::lock_guard lock(mutex_);
  const DeviceInfo& info = device_.info();
  const uint64_t page = info.page_bytes, n_bytes = round_up(file.size(), page);
  require_room(n_bytes, "the model file");
  const uint64_t overlap = round_up(longest, page) + page;
  const uint64_t most = info.max_buffer_bytes / page * page;
  if (n_bytes > most && overlap >= most) {
    throw OutOfMemory(
        "a tensor of " + gib(longest) + " does not fit one buffer of the device (at most " +
            gib(info.max_buffer_bytes) + ")",
        longest);
  }
  for (uint64_t begin = 0;;) {
    const uint64_t size = std::min(most, n_bytes - begin);
    DeviceBuffer buffer;
    const Status status = device_.wrap_memory(file.data() + begin, size, &buffer);
    if (!status.ok()) {
      throw BackendError(
          std::string("metal: cannot map the model file: ") + status.message, "map_file");
    }
    views_.emplace(reinterpret_cast<uintptr_t>(file.data() + begin), buffer);
    if (begin + size == n_bytes) break;
    begin += size - overlap;
  }
  used_ += n_bytes;
}

BufferTable::Place BufferTable::find(const void* data, uint64_t n_bytes) const {
  std::lock_guard lock(mutex_);
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  for (const auto* table : {&memory_, &views_}) {
    // Views overlap: the last one that begins at or before the address reaches furthest.
    auto at = table->upper_bound(address);
    if (at == table->begin()) continue;
    const DeviceBuffer& b = (--at)->second;
    const uint64_t offset = address - at->first;
    if (offset < b.n_bytes && n_bytes <= b.n_bytes - offset) {
      return {b.id, offset, b.gpu_address + offset, b.n_bytes - offset};
    }
  }
  throw Error("internal error: an op was given memory that is not the Metal backend's");
}

}  // namespace grebe::metal
