// What operating systems do differently with an open file; one source each, chosen by CMake.
#pragma once

namespace grebe::os {

/// What was written to fd before reaches the disk before what is written after: fdatasync, or a
/// barrier where there is one. 0, or -1 and errno.
int sync_data(int fd);

/// The same for the entries of a directory.
int sync_entries(int fd);

/// Reads will jump about: read-ahead would be for nothing. A hint; never fails.
void expect_random_reads(int fd);

}  // namespace grebe::os
