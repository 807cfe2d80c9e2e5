// Storage by the calls of POSIX; os_file.h has what systems do differently.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.h"
#include "io/os_file.h"
#include "io/storage.h"

namespace grebe {
namespace {

// macOS refuses calls of 2 GiB and more, Linux does a part.
constexpr size_t kMaxCallBytes = size_t{1} << 30;

[[noreturn]] void fail(const std::string& path, const std::string& what, int error) {
  throw IoError(path + ": cannot " + what + ": " + std::strerror(error), path, error);
}

// Repeats a call that a signal interrupted.
template <class F>
auto retry(F&& call) {
  for (;;) {
    const auto result = call();
    if (result != -1 || errno != EINTR) return result;
  }
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// O_NONBLOCK is for a pipe that lies where a file should: opening it would wait for a writer.
Descriptor open_descriptor(const std::string& path, int flags, const char* what) {
  const int fd = retry([&] { return ::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, 0600); });
  if (fd < 0) fail(path, what, errno);
  return Descriptor(fd);
}

std::string parent_of(const std::string& path) {
  size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  end = path.find_last_of('/', end);
  if (end == std::string::npos) return ".";
  end = path.find_last_not_of('/', end);
  return end == std::string::npos ? "/" : path.substr(0, end + 1);
}

class PosixFile final : public StorageFile {
 public:
  PosixFile(std::string path, Descriptor fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  uint64_t size() const override {
    struct stat status;
    if (::fstat(fd_.get(), &status) != 0) fail(path_, "read the size", errno);
    return static_cast<uint64_t>(status.st_size);
  }

  void read(uint64_t offset, void* to, size_t n) const override {
    check_range(offset, n, "read");
    for (uint8_t* p = static_cast<uint8_t*>(to); n > 0;) {
      const ssize_t done = retry([&] {
        return ::pread(fd_.get(), p, std::min(n, kMaxCallBytes), static_cast<off_t>(offset));
      });
      if (done < 0) fail(path_, "read " + at(offset, n), errno);
      if (done == 0)
        throw IoError(
            path_ + ": cannot read " + at(offset, n) + ": the file ends before", path_, EIO);
      p += done;
      offset += static_cast<uint64_t>(done);
      n -= static_cast<size_t>(done);
    }
  }

  void write(uint64_t offset, const void* from, size_t n) override {
    check_range(offset, n, "write");
    for (const uint8_t* p = static_cast<const uint8_t*>(from); n > 0;) {
      const ssize_t done = retry([&] {
        return ::pwrite(fd_.get(), p, std::min(n, kMaxCallBytes), static_cast<off_t>(offset));
      });
      // A call that writes nothing and says nothing would be repeated for ever.
      if (done <= 0) fail(path_, "write " + at(offset, n), done < 0 ? errno : EIO);
      p += done;
      offset += static_cast<uint64_t>(done);
      n -= static_cast<size_t>(done);
    }
  }

  void sync() override {
    if (retry([&] { return os::sync_data(fd_.get()); }) != 0) fail(path_, "sync", errno);
  }

  void truncate(uint64_t size) override {
    check_range(size, 0, "truncate");
    if (retry([&] { return ::ftruncate(fd_.get(), static_cast<off_t>(size)); }) != 0)
      fail(path_, "truncate to " + std::to_string(size) + " bytes", errno);
  }

 private:
  static std::string at(uint64_t offset, size_t n) {
    return std::to_string(n) + " bytes at " + std::to_string(offset);
  }

  // Offsets come out of files: one beyond what the system counts is an error, not a negative
  // number.
  void check_range(uint64_t offset, size_t n, const char* what) const {
    constexpr uint64_t kMax = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
    if (offset > kMax || n > kMax - offset) fail(path_, what + (" " + at(offset, n)), EINVAL);
  }

  std::string path_;
  Descriptor fd_;
};

// flock belongs to the open file, not to the process as fcntl's locks do: a second one in this
// process is refused too, and closing another descriptor of the file gives nothing up. A child of
// fork() shares it, and must not give it up.
class PosixLock final : public StorageLock {
 public:
  explicit PosixLock(Descriptor fd) : fd_(std::move(fd)), owner_(::getpid()) {}
  ~PosixLock() override {
    if (::getpid() == owner_) ::flock(fd_.get(), LOCK_UN);  // also when a child lives on
  }

 private:
  Descriptor fd_;
  pid_t owner_;
};

class PosixStorage final : public Storage {
 public:
  std::unique_ptr<StorageFile> open(const std::string& path, Mode mode) override {
    int flags = O_RDONLY;
    if (mode != Mode::kRead) flags = O_RDWR;
    if (mode == Mode::kCreate) flags |= O_CREAT | O_EXCL;
    Descriptor fd = open_descriptor(path, flags, mode == Mode::kCreate ? "create" : "open");
    struct stat status;
    if (::fstat(fd.get(), &status) != 0) fail(path, "open", errno);
    if (S_ISDIR(status.st_mode)) fail(path, "open", EISDIR);
    if (!S_ISREG(status.st_mode)) fail(path, "open what is no regular file", EINVAL);
    if (mode == Mode::kRead) os::expect_random_reads(fd.get());
    return std::make_unique<PosixFile>(path, std::move(fd));
  }

  bool exists(const std::string& path) override {
    struct stat status;
    if (::stat(path.c_str(), &status) == 0) return true;
    if (errno != ENOENT && errno != ENOTDIR) fail(path, "look for the file", errno);
    return false;
  }

  std::vector<std::string> list(const std::string& directory) override {
    struct Closer {
      void operator()(DIR* d) const { ::closedir(d); }
    };
    const std::unique_ptr<DIR, Closer> stream(::opendir(directory.c_str()));
    if (!stream) fail(directory, "list", errno);
    std::vector<std::string> names;
    for (;;) {
      errno = 0;  // the end and an error are both a null pointer
      const dirent* entry = ::readdir(stream.get());
      if (!entry) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) fail(directory, "list", errno);
    std::sort(names.begin(), names.end());
    return names;
  }

  void make_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0700) != 0) {
      int error = errno;
      if (error == ENOENT && parent_of(path) != path) {
        make_directory(parent_of(path));
        error = ::mkdir(path.c_str(), 0700) == 0 ? 0 : errno;
      }
      if (error != 0) {
        struct stat status;  // it may have been there, or have come meanwhile
        if (::stat(path.c_str(), &status) != 0) fail(path, "make the directory", error);
        if (!S_ISDIR(status.st_mode)) fail(path, "make the directory", ENOTDIR);
        return;
      }
    }
    try {  // a directory that the disk forgets takes its files along
      sync_directory(parent_of(path));
    } catch (const IoError&) {
      // Its parent may be one that we may write but not read.
    }
  }

  void rename(const std::string& from, const std::string& to) override {
    if (std::rename(from.c_str(), to.c_str()) != 0) fail(from, "rename to " + to, errno);
  }

  void remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) fail(path, "remove", errno);
  }

  void sync_directory(const std::string& path) override {
    const Descriptor fd = open_descriptor(path, O_RDONLY | O_DIRECTORY, "open the directory");
    if (retry([&] { return os::sync_entries(fd.get()); }) == 0) return;
    // Some file systems have nothing to sync in a directory and say so.
    if (errno != EINVAL && errno != ENOTSUP) fail(path, "sync the directory", errno);
  }

  std::unique_ptr<StorageLock> try_lock(const std::string& path) override {
    Descriptor fd = open_descriptor(path, O_RDWR | O_CREAT, "open the lock");
    if (retry([&] { return ::flock(fd.get(), LOCK_EX | LOCK_NB); }) != 0) {
      if (errno == EWOULDBLOCK) return nullptr;
      fail(path, "lock", errno);
    }
    return std::make_unique<PosixLock>(std::move(fd));
  }

  int64_t now() override {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::seconds>(since_epoch).count();
  }
};

}  // namespace

std::shared_ptr<Storage> posix_storage() {
  static const std::shared_ptr<Storage> storage = std::make_shared<PosixStorage>();
  return storage;
}

}  // namespace grebe
