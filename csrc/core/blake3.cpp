// Chunks of 1024 bytes are the leaves of a binary tree whose left subtrees are complete. The chunk
// being read is kept aside, since only at the end it is known whether it is the root; the stack
// holds one chaining value for each set bit of the number of chunks before it.
#include "core/blake3.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace grebe {
namespace {

constexpr size_t kBlockBytes = 64;
constexpr uint32_t kBlocksPerChunk = 16;

constexpr uint32_t kChunkStart = 1, kChunkEnd = 2, kParent = 4, kRoot = 8;

using Words = std::array<uint32_t, 8>;
using Block = std::array<uint32_t, 16>;

constexpr Words kIv = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

// Word i of the next round's message is word kPermutation[i] of this round's.
constexpr int kPermutation[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};

constexpr auto kSchedule = [] {
  std::array<std::array<uint8_t, 16>, 7> s{};
  for (uint8_t i = 0; i < 16; i++) s[0][i] = i;
  for (int round = 1; round < 7; round++)
    for (int i = 0; i < 16; i++) s[round][i] = s[round - 1][kPermutation[i]];
  return s;
}();

inline void mix(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t x, uint32_t y) {
  a += b + x;
  d = std::rotr(d ^ a, 16);
  c += d;
  b = std::rotr(b ^ c, 12);
  a += b + y;
  d = std::rotr(d ^ a, 8);
  c += d;
  b = std::rotr(b ^ c, 7);
}

// A round each, so that the schedule becomes constants: a third faster.
template <size_t kRound>
inline void run_round(uint32_t (&v)[16], const Block& m) {
  constexpr auto& s = kSchedule[kRound];
  mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
  mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
  mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
  mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
  mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
  mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
  mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
  mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
}

// The first half of the compression function's output, which is all that 256 bits need.
Words compress(
    const Words& chain, const Block& m, uint64_t counter, uint32_t n_bytes, uint32_t flags) {
  uint32_t v[16];
  for (int i = 0; i < 8; i++) v[i] = chain[i];
  for (int i = 0; i < 4; i++) v[8 + i] = kIv[i];
  v[12] = static_cast<uint32_t>(counter);
  v[13] = static_cast<uint32_t>(counter >> 32);
  v[14] = n_bytes;
  v[15] = flags;
  [&]<size_t... kRounds>(std::index_sequence<kRounds...>) {
    (run_round<kRounds>(v, m), ...);
  }(std::make_index_sequence<kSchedule.size()>());
  Words out;
  for (int i = 0; i < 8; i++) out[i] = v[i] ^ v[8 + i];
  return out;
}

Block to_words(const std::array<uint8_t, kBlockBytes>& bytes) {
  Block m;
  std::memcpy(m.data(), bytes.data(), kBlockBytes);  // little endian, as all our files
  return m;
}

Words parent(const Words& left, const Words& right, uint32_t flags) {
  Block m;
  std::copy(left.begin(), left.end(), m.begin());
  std::copy(right.begin(), right.end(), m.begin() + 8);
  return compress(kIv, m, 0, kBlockBytes, kParent | flags);
}

uint32_t start_flag(uint32_t n_compressed) { return n_compressed == 0 ? kChunkStart : 0; }

}  // namespace

std::string Digest::hex() const {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (uint8_t b : bytes) {
    out += kDigits[b >> 4];
    out += kDigits[b & 15];
  }
  return out;
}

Blake3::Blake3() { chunk_.chain = kIv; }

Blake3& Blake3::update(const void* data, size_t n) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  while (n > 0) {
    // A full block is compressed when more follows: the last one of a chunk carries flags.
    if (chunk_.block_len == kBlockBytes) {
      const bool last = chunk_.n_compressed + 1 == kBlocksPerChunk;
      chunk_.chain = compress(
          chunk_.chain,
          to_words(chunk_.block),
          chunk_.index,
          kBlockBytes,
          start_flag(chunk_.n_compressed) | (last ? kChunkEnd : 0));
      chunk_.n_compressed++;
      chunk_.block_len = 0;
      if (last) {
        Words chain = chunk_.chain;
        const uint64_t n_chunks = chunk_.index + 1;
        for (int i = std::countr_zero(n_chunks); i > 0; i--)
          chain = parent(stack_[--stack_len_], chain, 0);
        stack_[stack_len_++] = chain;
        chunk_.index = n_chunks;
        chunk_.chain = kIv;
        chunk_.n_compressed = 0;
      }
    }
    const size_t take = std::min(n, kBlockBytes - chunk_.block_len);
    std::memcpy(chunk_.block.data() + chunk_.block_len, p, take);
    chunk_.block_len += static_cast<uint32_t>(take);
    p += take;
    n -= take;
  }
  return *this;
}

Digest Blake3::finish() const {
  std::array<uint8_t, kBlockBytes> block{};
  std::copy_n(chunk_.block.begin(), chunk_.block_len, block.begin());
  const uint32_t only = stack_len_ == 0 ? kRoot : 0;
  Words chain = compress(
      chunk_.chain,
      to_words(block),
      chunk_.index,
      chunk_.block_len,
      start_flag(chunk_.n_compressed) | kChunkEnd | only);
  for (uint32_t i = stack_len_; i > 0; i--)
    chain = parent(stack_[i - 1], chain, i == 1 ? kRoot : 0);
  Digest out;
  std::memcpy(out.bytes.data(), chain.data(), out.bytes.size());
  return out;
}

}  // namespace grebe
