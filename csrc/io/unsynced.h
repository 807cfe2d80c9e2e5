// What a machine that loses power may lose: for tests of what is written over it.
//
// Everything is written through at once. Beside that, each page that was written since its file's
// last sync is kept in all its versions, and each creation, renaming and removal since the last
// sync of its directory with what undoes it. lose() picks: of each page any version, of each file's
// size any that it had, of the directories' changes the first few. A file that was synced but whose
// creation was not is lost as a whole; that is more than most file systems lose, and all that a
// store may rely on.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "io/storage.h"

namespace grebe {

class Unsynced {
 public:
  struct File;  ///< one of the disk, whatever its name; known by its handle after a renaming

  explicit Unsynced(Storage& base) : base_(base) {}

  /// `handle` was opened, and made new or not.
  std::shared_ptr<File> opened(const std::string& path, bool created, const StorageFile& handle);
  void write(File& file, StorageFile& handle, uint64_t offset, const void* from, size_t n);
  void truncate(File& file, StorageFile& handle, uint64_t size);
  void sync(File& file, StorageFile& handle);
  void rename(const std::string& from, const std::string& to);
  void remove(const std::string& path);
  void sync_directory(const std::string& path);

  /// The power goes. Nothing is unsynced afterwards; handles of before must not be used.
  void lose(std::mt19937_64& random);

 private:
  using Bytes = std::vector<uint8_t>;
  struct Change {
    enum Kind { kCreate, kRename, kRemove } kind;
    std::string path, to;
    std::shared_ptr<File> file;      // removed, or overwritten by a renaming
    std::unique_ptr<Bytes> content;  // of it; null: there was none
  };

  void keep(File& file, const StorageFile& handle, uint64_t offset, uint64_t end);
  void undo(Change& change);
  void settle(File& file, const std::string& path, double p_newest, std::mt19937_64& random);
  std::unique_ptr<Bytes> read_all(const std::string& path);
  void write_all(const std::string& path, const Bytes& content);

  Storage& base_;
  std::map<std::string, std::shared_ptr<File>> files_;  // by present name
  std::vector<Change> changes_;
};

}  // namespace grebe
