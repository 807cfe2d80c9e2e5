// A file that takes the place of another whole, or not at all.
//
// It is written beside the one that it replaces, as PATH.tmp-PID-..., and renamed over it when it
// is on the disk: at every moment, also after a crash, PATH is the old file or the new one. What a
// process that died has left is removed by the next one that writes the same path.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/storage.h"

namespace grebe {

class AtomicFile {
 public:
  /// storage null: posix_storage(). Mode 0600. Every call throws IoError that names `path`.
  AtomicFile(std::shared_ptr<Storage> storage, const std::string& path);
  /// Without commit() nothing is left of it.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(const void* data, size_t n);
  /// Begins again with an empty file.
  void restart();
  /// Puts it in place. When only the last barrier fails, the new file is in place and may not
  /// outlive a power failure; else, on error, the old one is untouched.
  void commit();

 private:
  template <class F>
  void attempt(F&& call, const char* outcome);
  void flush();
  void remove_leftovers() noexcept;

  std::shared_ptr<Storage> storage_;
  std::string path_, directory_, temporary_;
  std::unique_ptr<StorageFile> file_;
  std::vector<uint8_t> buffer_;
  uint64_t n_written_ = 0;
};

}  // namespace grebe
