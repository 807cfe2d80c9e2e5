#include <fcntl.h>
#include <unistd.h>

#include "io/os_file.h"

namespace grebe::os {

int sync_data(int fd) { return ::fdatasync(fd); }

int sync_entries(int fd) { return ::fsync(fd); }

void expect_random_reads(int fd) { ::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); }

}  // namespace grebe::os
