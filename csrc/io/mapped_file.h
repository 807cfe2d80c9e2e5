// A read-only memory mapping of a file.
#pragma once

#include <cstdint>
#include <string>

namespace grebe {

class MappedFile {
 public:
  /// Throws IoError when the file cannot be opened or mapped, FormatError when it is empty or not a
  /// regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  /// Addresses reserved from data() on: size() rounded up to kAlignment. What lies after the file
  /// reads as zero or not at all.
  uint64_t mapped_size() const;

  /// Of data(): the page of an Apple GPU, a multiple of every CPU page in use.
  static constexpr uint64_t kAlignment = 16384;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

/// Asks the kernel to read these bytes of a mapping soon, without waiting for them. A hint; never
/// fails.
void prefetch(const uint8_t* data, uint64_t n_bytes);

}  // namespace grebe
