// GGUF container: metadata and tensor directory over mapped files [GGUF].
//
// The file is hostile: every length is checked against the bytes that are there before it is used
// or allocated for. Versions 2 and 3, little endian; shards (split.*); unordered and overlapping
// tensor offsets.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "io/mapped_file.h"

namespace grebe {

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

/// An array, as a view into the mapping; elements may be unaligned.
struct GgufArray {
  GgufType element_type;
  uint64_t count;
  const uint8_t* data;  ///< first element (strings: u64 length, bytes, ...), bounds already checked
  uint64_t data_bytes;
};
/// Scalars are widened (u64, i64, f64); strings and arrays are views into the mapping.
using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;

struct GgufKey {
  std::string_view key;
  GgufType type;
  GgufValue value;
  uint64_t offset;  ///< of the key in its file, for messages
};

/// Checked: no dimension is 0, the number of elements fits 62 bits, rows are whole blocks, data
/// lies inside its file. A tensor of a type that gguf_type_info() does not know has data null and
/// n_bytes 0.
struct GgufTensor {
  std::string_view name;
  uint32_t type;             ///< the number in the file; DType where known
  std::vector<uint64_t> ne;  ///< 1..4 dimensions, ne[0] contiguous
  const uint8_t* data;
  uint64_t n_bytes;
  uint64_t offset;  ///< absolute, in its file
  int shard;

  /// Size of dimension i; 1 past the last.
  uint64_t dim(size_t i) const { return i < ne.size() ? ne[i] : 1; }
  /// "[4096, 256]"
  std::string shape() const;
};

/// Name and block of a tensor type number: dtype_info() plus the types that this engine cannot
/// compute with but must name and measure. `name` is null for a number nobody knew when this was
/// written.
DTypeInfo gguf_type_info(uint32_t type);
/// "Q4_0 (type 2)" or "unknown (type 99)".
std::string gguf_type_name(uint32_t type);
/// Text of a hostile file, quoted and fit for a message: unprintable bytes as '?', at most 80 of
/// them.
std::string quoted(std::string_view text);

class GgufFile {
 public:
  /// Opens `path` and, when it is shard 1 of n (`-00001-of-0000n.gguf`), the others beside it.
  /// Throws IoError, FormatError{path, offset}, UnsupportedModel for big-endian or unknown versions
  /// and for a later shard.
  static std::shared_ptr<const GgufFile> open(const std::string& path);

  const std::string& path() const;
  uint32_t version() const;
  uint64_t file_bytes() const;  ///< of all shards
  int n_shards() const;
  const std::string& shard_path(int shard) const;
  const MappedFile& shard(int shard) const;

  /// Of the first file; other shards only carry their split.* numbers.
  const std::vector<GgufKey>& keys() const;
  const GgufKey* find_key(std::string_view key) const;

  // Typed access; nullopt when absent, FormatError naming the key when of a type that does not
  // convert.
  std::optional<int64_t> get_int(
      std::string_view key) const;  ///< any integer type or bool; a float with integral value
  std::optional<double> get_float(std::string_view key) const;  ///< any number
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string_view> get_string(std::string_view key) const;
  std::optional<std::vector<int64_t>> get_int_array(
      std::string_view key) const;  ///< a scalar gives one element
  std::optional<std::vector<double>> get_float_array(std::string_view key) const;
  std::optional<std::vector<std::string_view>> get_string_array(std::string_view key) const;

  const std::vector<GgufTensor>& tensors() const;
  const GgufTensor* find_tensor(std::string_view name) const;

  ~GgufFile();

 private:
  GgufFile();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace grebe
