// Mapping of a whole file. Pages are read when they are touched: the kernel's default read-ahead
// suits both the directory at the front and expert matrices of a megabyte, so no advice is given
// here.
//
// The mapping begins at a multiple of kAlignment and its address range reaches to the next one
// after the file, because a GPU takes views of whole pages of its own size.
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace grebe {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const auto fail = [&](const char* what, int error) {
    throw IoError(path + ": cannot " + what + ": " + std::strerror(error), path, error);
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("open", errno);
  struct Closer {  // the mapping outlives the descriptor
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};

  struct stat status;
  if (::fstat(fd, &status) != 0) fail("read the size", errno);
  if (!S_ISREG(status.st_mode)) throw FormatError(path, 0, "not a regular file");
  if (status.st_size <= 0) throw FormatError(path, 0, "the file is empty");
  size_ = static_cast<uint64_t>(status.st_size);
  const uint64_t reserved = mapped_size();
  void* range = ::mmap(
      nullptr,
      reserved + kAlignment,
      PROT_READ,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
      -1,
      0);
  if (range == MAP_FAILED) fail("map", errno);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(range);
  const uintptr_t aligned = (begin + kAlignment - 1) / kAlignment * kAlignment;
  const auto unmap = [](uintptr_t first, uintptr_t end) {
    if (end > first) ::munmap(reinterpret_cast<void*>(first), end - first);
  };
  unmap(begin, aligned);
  unmap(aligned + reserved, begin + reserved + kAlignment);
  if (::mmap(reinterpret_cast<void*>(aligned), size_, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) ==
      MAP_FAILED) {
    const int error = errno;
    unmap(aligned, aligned + reserved);
    fail("map", error);
  }
  data_ = reinterpret_cast<const uint8_t*>(aligned);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<uint8_t*>(data_), mapped_size());
}

uint64_t MappedFile::mapped_size() const {
  return (size_ + kAlignment - 1) / kAlignment * kAlignment;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(other.data_), size_(other.size_) {
  other.data_ = nullptr;
  other.size_ = 0;
}

void prefetch(const uint8_t* data, uint64_t n_bytes) {
  static const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + n_bytes;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

}  // namespace grebe
