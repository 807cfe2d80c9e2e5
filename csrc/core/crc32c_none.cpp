// For processors whose instruction we do not know; has_crc32c() keeps callers away.
#include "core/crc32c.h"

namespace grebe::detail {

uint32_t crc32c_by_instruction(const void* data, size_t n, uint32_t crc) {
  return crc32c_portable(data, n, crc);
}

}  // namespace grebe::detail
