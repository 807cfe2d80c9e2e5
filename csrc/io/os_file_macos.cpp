// fsync of macOS leaves the data in the drive's cache, in any order. F_BARRIERFSYNC keeps the order
// and is many times faster than F_FULLFSYNC, which also waits for the drive; file systems without
// either (network drives) have fsync.
#include <fcntl.h>
#include <unistd.h>

#include "io/os_file.h"

namespace grebe::os {

int sync_data(int fd) {
  if (::fcntl(fd, F_BARRIERFSYNC) == 0) return 0;
  if (::fcntl(fd, F_FULLFSYNC) == 0) return 0;
  return ::fsync(fd);
}

int sync_entries(int fd) { return sync_data(fd); }

void expect_random_reads(int fd) { ::fcntl(fd, F_RDAHEAD, 0); }

}  // namespace grebe::os
