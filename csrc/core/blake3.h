// BLAKE3, the plain hash of 256 bits [BLAKE3].
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace grebe {

/// A BLAKE3 hash: the name of what was hashed.
struct Digest {
  std::array<uint8_t, 32> bytes{};

  auto operator<=>(const Digest&) const = default;
  std::string hex() const;
};

/// For unordered containers: the digest is random already.
struct DigestHash {
  size_t operator()(const Digest& d) const {
    size_t h;
    std::memcpy(&h, d.bytes.data(), sizeof h);
    return h;
  }
};

/// One after another: update(a), update(b) hashes a followed by b. finish() may be called at any
/// time and changes nothing.
class Blake3 {
 public:
  Blake3();
  Blake3& update(const void* data, size_t n);
  Digest finish() const;

 private:
  struct Chunk {  // the chunk being read
    std::array<uint32_t, 8> chain;
    uint64_t index = 0;
    std::array<uint8_t, 64> block{};
    uint32_t block_len = 0;
    uint32_t n_compressed = 0;
  } chunk_;
  std::array<std::array<uint32_t, 8>, 54> stack_;  // chaining values of finished subtrees
  uint32_t stack_len_ = 0;
};

}  // namespace grebe
