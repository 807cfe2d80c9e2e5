// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) [RFC 3720 B.4].
#pragma once

#include <cstddef>
#include <cstdint>

namespace grebe {

/// crc32c(b, crc32c(a)) is the checksum of a followed by b. Start with 0. Uses the processor's
/// instruction for it where there is one.
uint32_t crc32c(const void* data, size_t n, uint32_t crc = 0);

/// The same by table on every machine, for tests.
uint32_t crc32c_portable(const void* data, size_t n, uint32_t crc = 0);

}  // namespace grebe
