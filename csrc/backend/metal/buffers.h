// Which device buffer holds an address. The engine passes plain pointers; a GPU wants a buffer and
// an offset.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>

#include "backend/metal/device.h"

namespace grebe::metal {

/// Thread-safe: sessions come and go while another one's step is recorded.
class BufferTable {
 public:
  struct Place {
    uint32_t buffer = 0;
    uint64_t offset = 0;
    uint64_t gpu_address = 0;
    uint64_t n_bytes = 0;  ///< from the address to the end of the buffer
  };

  explicit BufferTable(Device& device) : device_(device) {}
  ~BufferTable();
  BufferTable(const BufferTable&) = delete;

  /// Zeroed memory of its own buffer. Throws OutOfMemory.
  void* allocate(uint64_t n_bytes, const char* what);
  void release(void* memory) noexcept;

  /// Views of mapped files: as many as needed, each at most max_buffer_bytes, overlapping by
  /// `longest` (of any one tensor), so that every tensor lies whole in one of them. Throws
  /// OutOfMemory with the numbers when the files do not fit the device's working set.
  void map_files(std::span<const std::span<const uint8_t>> files, uint64_t longest);

  /// The buffer that holds [data, data + n_bytes). Throws Error when there is none.
  Place find(const void* data, uint64_t n_bytes) const;

 private:
  void require_room(uint64_t n_bytes, const std::string& what) const;
  void map_file(std::span<const uint8_t> file, uint64_t longest);
  void count(int64_t n_bytes);

  Device& device_;
  mutable std::mutex mutex_;
  std::map<uintptr_t, DeviceBuffer> memory_;  // by address
  std::map<uintptr_t, DeviceBuffer> views_;
  int64_t used_ = 0;  // by this table; the budget is the process's
};

}  // namespace grebe::metal
