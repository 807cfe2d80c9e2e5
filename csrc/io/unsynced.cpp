#include "io/unsynced.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace grebe {

namespace {

constexpr uint64_t kPageBytes = 4096, kSectorBytes = 512;

std::string directory_of(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

// The newest with this probability, else any of the others.
size_t pick(size_t n_versions, double p_newest, std::mt19937_64& random) {
  if (n_versions == 1 || uniform(random) < p_newest) return n_versions - 1;
  return static_cast<size_t>(random() % (n_versions - 1));
}

}  // namespace

struct Unsynced::File {
  std::map<uint64_t, std::vector<Bytes>> pages;  // by number; first as synced; short at the end
  std::vector<uint64_t> sizes;                   // first as synced; never empty
  bool removed = false;
};

namespace {

std::vector<uint8_t> read_page(const StorageFile& handle, uint64_t page, uint64_t size) {
  const uint64_t begin = page * kPageBytes;
  std::vector<uint8_t> bytes(begin < size ? std::min(kPageBytes, size - begin) : 0);
  if (!bytes.empty()) handle.read(begin, bytes.data(), bytes.size());
  return bytes;
}

}  // namespace

std::shared_ptr<Unsynced::File> Unsynced::opened(
    const std::string& path, bool created, const StorageFile& handle) {
  std::shared_ptr<File>& file = files_[path];
  if (created || !file) {
    file = std::make_shared<File>();
    file->sizes = {created ? 0 : handle.size()};
  }
  if (created) changes_.push_back({Change::kCreate, path, "", nullptr, nullptr});
  return file;
}

// Remembers the pages of a range as they are now, unless that is their last version already.
void Unsynced::keep(File& file, const StorageFile& handle, uint64_t offset, uint64_t end) {
  const uint64_t size = handle.size();
  if (size != file.sizes.back()) file.sizes.push_back(size);
  for (uint64_t page = offset / kPageBytes; page * kPageBytes < end; page++) {
    Bytes now = read_page(handle, page, size);
    std::vector<Bytes>& versions = file.pages[page];
    if (versions.empty() || versions.back() != now) versions.push_back(std::move(now));
  }
}

void Unsynced::write(File& file, StorageFile& handle, uint64_t offset, const void* from, size_t n) {
  if (file.removed) return handle.write(offset, from, n);
  // A write beyond the end changes the page that the file ended in too: it is filled with zeros.
  const uint64_t begin = std::min(offset, handle.size());
  keep(file, handle, begin, offset + n);
  try {
    handle.write(offset, from, n);
  } catch (const IoError&) {
    keep(file, handle, begin, offset + n);
    throw;
  }
  keep(file, handle, begin, offset + n);
}

void Unsynced::truncate(File& file, StorageFile& handle, uint64_t size) {
  if (file.removed) return handle.truncate(size);
  const uint64_t before = handle.size();
  const uint64_t begin = std::min(before, size), end = std::max(before, size);
  keep(file, handle, begin, end);
  handle.truncate(size);
  keep(file, handle, begin, end);
}

void Unsynced::sync(File& file, StorageFile& handle) {
  handle.sync();
  file.pages.clear();
  file.sizes = {handle.size()};
}

void Unsynced::rename(const std::string& from, const std::string& to) {
  Change change{Change::kRename, from, to, nullptr, read_all(to)};
  base_.rename(from, to);
  if (const auto it = files_.find(to); it != files_.end()) {
    change.file = it->second;
    change.file->removed = true;
    files_.erase(it);
  }
  if (const auto it = files_.find(from); it != files_.end()) {
    files_[to] = it->second;
    files_.erase(from);
  }
  changes_.push_back(std::move(change));
}

void Unsynced::remove(const std::string& path) {
  Change change{Change::kRemove, path, "", nullptr, read_all(path)};
  base_.remove(path);
  if (const auto it = files_.find(path); it != files_.end()) {
    change.file = it->second;
    change.file->removed = true;
    files_.erase(it);
  }
  changes_.push_back(std::move(change));
}

// Changes reach the disk in order, as by a journal: those before the last one here do too.
void Unsynced::sync_directory(const std::string& path) {
  base_.sync_directory(path);
  const std::string directory = without_slashes(path);
  size_t n_done = 0;
  for (size_t i = 0; i < changes_.size(); i++) {
    const Change& c = changes_[i];
    if (directory_of(c.path) == directory || (!c.to.empty() && directory_of(c.to) == directory))
      n_done = i + 1;
  }
  changes_.erase(changes_.begin(), changes_.begin() + static_cast<ptrdiff_t>(n_done));
}

void Unsynced::lose(std::mt19937_64& random) {
  size_t n_kept = changes_.size();
  const double how = uniform(random);
  if (how < 0.33) n_kept = 0;
  if (how > 0.66) n_kept = static_cast<size_t>(random() % (changes_.size() + 1));
  for (; changes_.size() > n_kept; changes_.pop_back()) undo(changes_.back());

  // Nothing lost, everything lost, and most of either happen often enough to be met.
  constexpr double kNewest[] = {0, 0.1, 0.5, 0.9, 1};
  const double p_newest = kNewest[random() % std::size(kNewest)];
  for (auto& [path, file] : files_) settle(*file, path, p_newest, random);
  files_.clear();
  changes_.clear();
}

void Unsynced::undo(Change& change) {
  switch (change.kind) {
    case Change::kCreate:
      base_.remove(change.path);
      files_.erase(change.path);
      return;
    case Change::kRename:
      base_.rename(change.to, change.path);
      if (const auto it = files_.find(change.to); it != files_.end()) {
        files_[change.path] = it->second;
        files_.erase(change.to);
      }
      if (change.content) write_all(change.to, *change.content);
      if (change.file) files_[change.to] = change.file;
      return;
    case Change::kRemove:
      write_all(change.path, *change.content);
      if (change.file) files_[change.path] = change.file;
      return;
  }
}

void Unsynced::settle(
    File& file, const std::string& path, double p_newest, std::mt19937_64& random) {
  if (file.pages.empty() && file.sizes.size() == 1) return;
  const uint64_t size = file.sizes[pick(file.sizes.size(), p_newest, random)];
  const auto handle = base_.open(path, Storage::Mode::kReadWrite);
  for (auto& [page, versions] : file.pages) {
    const uint64_t begin = page * kPageBytes;
    if (begin >= size) break;
    for (Bytes& bytes : versions) bytes.resize(kPageBytes);
    Bytes chosen = versions[pick(versions.size(), p_newest, random)];
    if (p_newest < 1 && random() % 4 == 0) {  // a page is written in sectors
      for (uint64_t s = 0; s < kPageBytes; s += kSectorBytes) {
        const Bytes& other = versions[pick(versions.size(), p_newest, random)];
        std::memcpy(&chosen[s], &other[s], kSectorBytes);
      }
    }
    handle->write(begin, chosen.data(), std::min(kPageBytes, size - begin));
  }
  handle->truncate(size);
}

std::unique_ptr<Unsynced::Bytes> Unsynced::read_all(const std::string& path) {
  if (!base_.exists(path)) return nullptr;
  const auto handle = base_.open(path, Storage::Mode::kRead);
  auto content = std::make_unique<Bytes>(handle->size());
  handle->read(0, content->data(), content->size());
  return content;
}

void Unsynced::write_all(const std::string& path, const Bytes& content) {
  base_.open(path, Storage::Mode::kCreate)->write(0, content.data(), content.size());
}

}  // namespace grebe
