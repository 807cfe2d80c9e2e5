// Mapping of a whole file. Pages are read when they are touched: the kernel's default read-ahead
// suits both the directory at the front and expert matrices of a megabyte, so no advice is given
// here.
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
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) fail("map", errno);
  data_ = static_cast<const uint8_t*>(address);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<uint8_t*>(data_), size_);
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
