// Files as a store needs them: appended, read anywhere, synchronised, locked.
//
// The real ones are those of posix_storage(). Tests put a Storage in its place that fails, tears or
// kills at a chosen operation (io/faulty_storage.h). Every call throws IoError with the path and
// the errno; all are safe from several threads, except that writes to one file must not overlap.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace grebe {

class StorageFile {
 public:
  virtual ~StorageFile() = default;  ///< closes
  virtual uint64_t size() const = 0;
  /// Exactly n bytes; the end of the file within them is an IoError with EIO.
  virtual void read(uint64_t offset, void* to, size_t n) const = 0;
  /// All n bytes, or it throws (and some may have been written).
  virtual void write(uint64_t offset, const void* from, size_t n) = 0;
  /// What was written before reaches the disk before what is written after (fdatasync;
  /// F_BARRIERFSYNC on macOS).
  virtual void sync() = 0;
  virtual void truncate(uint64_t size) = 0;
};

/// Held by whoever may write a directory; given up on destruction and when the process ends.
class StorageLock {
 public:
  virtual ~StorageLock() = default;
};

class Storage : public std::enable_shared_from_this<Storage> {
 public:
  enum class Mode {
    kRead,       ///< must exist
    kReadWrite,  ///< must exist
    kCreate,     ///< must not exist; mode 0600
  };
  virtual ~Storage() = default;
  virtual std::unique_ptr<StorageFile> open(const std::string& path, Mode mode) = 0;
  virtual bool exists(const std::string& path) = 0;
  virtual std::vector<std::string> list(const std::string& directory) = 0;  ///< names, sorted
  /// With its parents, mode 0700; an existing one is left as it is.
  virtual void make_directory(const std::string& path) = 0;
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove(const std::string& path) = 0;
  /// Makes creations, renames and removals in it last.
  virtual void sync_directory(const std::string& path) = 0;
  /// Null when somebody else (this process included) holds it.
  virtual std::unique_ptr<StorageLock> try_lock(const std::string& path) = 0;
  /// Seconds since the epoch. The clock of a user's machine may jump either way.
  virtual int64_t now() = 0;
};

std::shared_ptr<Storage> posix_storage();

}  // namespace grebe
