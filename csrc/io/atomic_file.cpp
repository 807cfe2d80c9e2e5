#include "io/atomic_file.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <random>

#include "core/error.h"

namespace grebe {
namespace {

constexpr size_t kBufferBytes = 1 << 20;
constexpr const char* kUnchanged = "what was there is unchanged";

std::string suffix() { return ".tmp-" + std::to_string(::getpid()) + "-"; }

// Tells files of this process from those of an earlier one that had its number.
const std::string& process_token() {
  static const std::string token = [] {
    std::random_device random;
    return std::to_string(random()) + "-";
  }();
  return token;
}

bool is_gone(int64_t pid) {
  return pid > 0 && ::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH;
}

}  // namespace

AtomicFile::AtomicFile(std::shared_ptr<Storage> storage, const std::string& path)
    : storage_(storage ? std::move(storage) : posix_storage()), path_(path) {
  static std::atomic<uint64_t> n_made{0};
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  directory_ = parent.empty() ? "." : parent.string();
  temporary_ = path + suffix() + process_token() + std::to_string(n_made++);
  remove_leftovers();
  attempt([&] { file_ = storage_->open(temporary_, Storage::Mode::kCreate); }, kUnchanged);
  buffer_.reserve(kBufferBytes);
}

AtomicFile::~AtomicFile() {
  if (!file_) return;
  file_.reset();
  try {
    storage_->remove(temporary_);
  } catch (const std::exception&) {  // the next one that writes this path may
  }
}

template <class F>
void AtomicFile::attempt(F&& call, const char* outcome) {
  try {
    call();
  } catch (const IoError& e) {
    throw IoError(
        path_ + ": cannot save: " + std::strerror(e.errno_value) + "; " + outcome,
        path_,
        e.errno_value);
  }
}

void AtomicFile::append(const void* data, size_t n) {
  if (buffer_.size() + n > kBufferBytes) flush();
  if (n >= kBufferBytes) {
    attempt([&] { file_->write(n_written_, data, n); }, kUnchanged);
    n_written_ += n;
  } else if (n > 0) {
    const uint8_t* p = static_cast<const uint8_t*>(data);
    buffer_.insert(buffer_.end(), p, p + n);
  }
}

void AtomicFile::flush() {
  if (buffer_.empty()) return;
  attempt([&] { file_->write(n_written_, buffer_.data(), buffer_.size()); }, kUnchanged);
  n_written_ += buffer_.size();
  buffer_.clear();
}

void AtomicFile::restart() {
  buffer_.clear();
  n_written_ = 0;
  attempt([&] { file_->truncate(0); }, kUnchanged);
}

void AtomicFile::commit() {
  flush();
  attempt(
      [&] {
        file_->sync();
        storage_->rename(temporary_, path_);
      },
      kUnchanged);
  file_.reset();
  attempt(
      [&] { storage_->sync_directory(directory_); },
      "the new file is there, but may not outlive a power failure");
}

void AtomicFile::remove_leftovers() noexcept {
  try {
    const std::string prefix = std::filesystem::path(path_).filename().string() + ".tmp-";
    const std::string ours = suffix() + process_token();
    for (const std::string& name : storage_->list(directory_)) {
      if (!name.starts_with(prefix)) continue;
      int64_t pid = 0;
      std::from_chars(name.data() + prefix.size(), name.data() + name.size(), pid);
      const bool former = pid == ::getpid() && name.find(ours) == std::string::npos;
      if (former || is_gone(pid)) {
        storage_->remove((std::filesystem::path(directory_) / name).string());
      }
    }
  } catch (const std::exception&) {  // they only take room
  }
}

}  // namespace grebe
