// A read-only memory mapping of a file.
#pragma once

#include <cstdint>
#include <string>

namespace grebe {

class MappedFile {
 public:
  /// Throws IoError when the file cannot be opened or mapped, FormatError when it is empty or not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace grebe
