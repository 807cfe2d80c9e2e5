#include "backend/metal/buffers.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "core/error.h"

namespace grebe::metal {
namespace {

// Left to the system and to what other programs draw; plans that used all of the working set were
// seen to pass at load and to die in the first long prefill.
constexpr uint64_t kReserve = uint64_t{2} << 30;
// Beside the weights: cache rows of a long context, scratch of a prefill.
constexpr uint64_t kWorkingRoom = uint64_t{2} << 30;

// All tables of the process share the device.
std::atomic<int64_t> process_used{0};

std::string size(uint64_t n_bytes) {
  const bool mib = n_bytes < uint64_t{1} << 30;
  const uint64_t tenths = n_bytes * 10 >> (mib ? 20 : 30);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + (mib ? " MiB" : " GiB");
}

uint64_t physical_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page) : 0;
}

uint64_t round_up(uint64_t x, uint64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace

BufferTable::~BufferTable() {
  for (const auto& [address, buffer] : memory_) device_.free_buffer(buffer.id);
  for (const auto& [address, buffer] : views_) device_.free_buffer(buffer.id);
  process_used -= used_;
}

void BufferTable::count(int64_t n_bytes) {
  used_ += n_bytes;
  process_used += n_bytes;
}

void BufferTable::require_room(uint64_t n_bytes, const std::string& what) const {
  const uint64_t limit = device_.info().working_set_bytes;
  const uint64_t budget = limit > 2 * kReserve ? limit - kReserve : limit / 2;
  const uint64_t used = static_cast<uint64_t>(std::max<int64_t>(process_used, 0));
  if (n_bytes <= budget && used <= budget - n_bytes) return;
  std::string message = "out of GPU memory: " + what + " needs " + size(n_bytes) + ", " +
                        size(used) + " are in use, and the budget is " + size(budget) +
                        " (the device recommends at most " + size(limit) + "). ";
  const uint64_t wanted = used + n_bytes + kReserve + kWorkingRoom, memory = physical_bytes();
  if (memory != 0 && wanted + kReserve > memory) {
    message += "This machine's memory, " + size(memory) +
               ", is too small for it: use a smaller quantization or context";
  } else {
    message += "Use a smaller quantization or context, or raise the limit: sudo sysctl " +
               ("iogpu.wired_limit_mb=" + std::to_string((wanted + 0xfffff) >> 20));
  }
  throw OutOfMemory(message, n_bytes);
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
  count(static_cast<int64_t>(n_bytes));
  return buffer.contents;
}

void BufferTable::release(void* memory) noexcept {
  std::lock_guard lock(mutex_);
  const auto at = memory_.find(reinterpret_cast<uintptr_t>(memory));
  if (at == memory_.end()) return;
  count(-static_cast<int64_t>(at->second.n_bytes));
  device_.free_buffer(at->second.id);
  memory_.erase(at);
}

void BufferTable::map_files(std::span<const std::span<const uint8_t>> files, uint64_t longest) {
  std::lock_guard lock(mutex_);
  uint64_t n_bytes = 0;
  for (const auto& file : files) n_bytes += file.size();
  require_room(n_bytes, "the model file");
  for (const auto& file : files) map_file(file, longest);
}

void BufferTable::map_file(std::span<const uint8_t> file, uint64_t longest) {
  const DeviceInfo& info = device_.info();
  const uint64_t page = info.page_bytes, n_bytes = round_up(file.size(), page);
  const uint64_t overlap = round_up(longest, page) + page;
  const uint64_t most = info.max_buffer_bytes / page * page;
  if (n_bytes > most && overlap >= most) {
    throw OutOfMemory(
        "a tensor of " + size(longest) + " does not fit one buffer of the device (at most " +
            size(info.max_buffer_bytes) + ")",
        longest);
  }
  for (uint64_t begin = 0;;) {
    const uint64_t n_view = std::min(most, n_bytes - begin);
    DeviceBuffer buffer;
    const Status status = device_.wrap_memory(file.data() + begin, n_view, &buffer);
    if (!status.ok()) {
      throw OutOfMemory(
          std::string("out of GPU memory: cannot map the model file: ") + status.message, n_view);
    }
    views_.emplace(reinterpret_cast<uintptr_t>(file.data() + begin), buffer);
    if (begin + n_view == n_bytes) break;
    begin += n_view - overlap;
  }
  count(static_cast<int64_t>(n_bytes));
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
