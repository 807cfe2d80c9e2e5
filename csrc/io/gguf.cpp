#include "io/gguf.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "io/gguf_cursor.h"

namespace grebe {

static_assert(
    std::endian::native == std::endian::little, "GGUF views need a little-endian machine");

namespace {

using gguf_internal::Cursor;
using gguf_internal::load;
using gguf_internal::load_scalar;
using gguf_internal::scalar_bytes;
using gguf_internal::type_name;

constexpr uint64_t kMaxElements = uint64_t{1} << 62;

// Smallest encodings, so that a count can be refused before anything is allocated for it.
constexpr uint64_t kMinKeyBytes = 8 + 4 + 1;  // length, type, one byte of value
constexpr uint64_t kMinTensorBytes =
    8 + 4 + 8 + 4 + 8;  // length, n_dims, one dimension, type, offset

int64_t to_int(const GgufValue& value, bool& ok) {
  ok = true;
  if (const auto* u = std::get_if<uint64_t>(&value)) {
    ok = *u <= static_cast<uint64_t>(INT64_MAX);
    return static_cast<int64_t>(*u);
  }
  if (const auto* i = std::get_if<int64_t>(&value)) return *i;
  if (const auto* b = std::get_if<bool>(&value)) return *b;
  if (const auto* f = std::get_if<double>(&value)) {  // 2^53: beyond it "integral" says nothing
    if (std::fabs(*f) <= 0x1p53 && *f == std::floor(*f)) return static_cast<int64_t>(*f);
  }
  ok = false;
  return 0;
}

double to_float(const GgufValue& value, bool& ok) {
  ok = true;
  if (const auto* u = std::get_if<uint64_t>(&value)) return static_cast<double>(*u);
  if (const auto* i = std::get_if<int64_t>(&value)) return static_cast<double>(*i);
  if (const auto* f = std::get_if<double>(&value)) return *f;
  ok = false;
  return 0;
}

}  // namespace

DTypeInfo gguf_type_info(uint32_t type) {
  switch (type) {  // types without kernels here; sizes from ggml-common.h [GGUF]
    case 2:
      return {"Q4_0", 32, 18};
    case 3:
      return {"Q4_1", 32, 20};
    case 6:
      return {"Q5_0", 32, 22};
    case 7:
      return {"Q5_1", 32, 24};
    case 9:
      return {"Q8_1", 32, 36};
    case 15:
      return {"Q8_K", 256, 292};
    case 17:
      return {"IQ2_XS", 256, 74};
    case 19:
      return {"IQ1_S", 256, 50};
    case 20:
      return {"IQ4_NL", 32, 18};
    case 21:
      return {"IQ3_S", 256, 110};
    case 23:
      return {"IQ4_XS", 256, 136};
    case 25:
      return {"I16", 1, 2};
    case 27:
      return {"I64", 1, 8};
    case 28:
      return {"F64", 1, 8};
    case 29:
      return {"IQ1_M", 256, 56};
    case 34:
      return {"TQ1_0", 256, 54};
    case 35:
      return {"TQ2_0", 256, 66};
    case 40:
      return {"NVFP4", 64, 36};
    default:
      break;
  }
  if (type == static_cast<uint32_t>(DType::kF8E4M3))
    return {nullptr, 0, 0};  // our own number, never in a file
  return dtype_info(static_cast<DType>(type));
}

std::string gguf_type_name(uint32_t type) {
  const char* name = gguf_type_info(type).name;
  return std::string(name ? name : "unknown") + " (type " + std::to_string(type) + ")";
}

std::string quoted(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  std::string out = "'";
  for (const char c : text.substr(0, kMaxBytes)) {
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return out + (text.size() > kMaxBytes ? "...'" : "'");
}

std::string GgufTensor::shape() const {
  std::string out = "[";
  for (size_t i = 0; i < ne.size(); ++i) out += (i ? ", " : "") + std::to_string(ne[i]);
  return out + "]";
}

struct GgufFile::Impl {
  std::vector<MappedFile> files;
  uint32_t version = 0;
  std::vector<GgufKey> keys;
  std::vector<GgufTensor> tensors;
  std::unordered_map<std::string_view, size_t> key_index, tensor_index;

  void read_header(Cursor& in, uint64_t& n_tensors, uint64_t& n_keys);
  std::vector<GgufKey> read_keys(Cursor& in, uint64_t n_keys);
  void read_tensors(Cursor& in, uint64_t n_tensors, uint64_t alignment, int shard);
  /// Parses one file into keys (the first) and tensors (all). Returns the file's keys.
  std::vector<GgufKey> read_file(int shard);
  void open_shards();
};

void GgufFile::Impl::read_header(Cursor& in, uint64_t& n_tensors, uint64_t& n_keys) {
  const std::string& path = files.back().path();
  const uint8_t* magic = in.bytes(4, "magic");
  if (std::memcmp(magic, "GGUF", 4) != 0) {
    // Two things people often have instead of the file they cloned or downloaded.
    if (std::memcmp(magic, "vers", 4) == 0)
      in.fail(0, "a Git LFS pointer, not the GGUF file; fetch it with `git lfs pull`");
    if (magic[0] == '<')
      in.fail(0, "looks like a web page, not a GGUF file; the download went wrong");
    in.fail(
        0,
        "not a GGUF file: magic is " + quoted({reinterpret_cast<const char*>(magic), 4}) +
            ", expected 'GGUF'");
  }
  const uint32_t v = in.number<uint32_t>("version");
  if (v != 2 && v != 3) {
    // A big-endian file has the same magic; its small version number then shows in the high byte.
    const bool big_endian = v != 0 && (v & 0xffff) == 0;
    const std::string found = big_endian ? "big-endian" : "version " + std::to_string(v);
    throw UnsupportedModel(
        path + ": GGUF " + found + "; this build reads little-endian versions 2 and 3",
        "version",
        found,
        "2 or 3, little-endian");
  }
  version = files.size() == 1 ? v : version;
  n_tensors = in.number<uint64_t>("tensor count");
  n_keys = in.number<uint64_t>("key count");
  const uint64_t left = in.left();
  if (n_tensors > left / kMinTensorBytes) {
    in.fail(
        8,
        std::to_string(n_tensors) + " tensors do not fit a directory of at most " +
            std::to_string(left) + " bytes");
  }
  if (n_keys > left / kMinKeyBytes) {
    in.fail(16, std::to_string(n_keys) + " keys do not fit in " + std::to_string(left) + " bytes");
  }
}

std::vector<GgufKey> GgufFile::Impl::read_keys(Cursor& in, uint64_t n_keys) {
  std::vector<GgufKey> out;
  for (uint64_t i = 0; i < n_keys; ++i) {
    GgufKey key;
    key.offset = in.offset();
    key.key = in.string("key");
    key.type = in.type();
    key.value = in.value(key.type);
    out.push_back(key);
  }
  return out;
}

void GgufFile::Impl::read_tensors(Cursor& in, uint64_t n_tensors, uint64_t alignment, int shard) {
  const MappedFile& file = files[shard];
  const size_t first = tensors.size();
  for (uint64_t i = 0; i < n_tensors; ++i) {
    GgufTensor t;
    const uint64_t at = in.offset();
    t.name = in.string("tensor name");
    const auto fail = [&](const std::string& what) {
      in.fail(at, "tensor " + quoted(t.name) + " " + what);
    };
    if (t.name.empty()) in.fail(at, "tensor without a name");
    const uint32_t n_dims = in.number<uint32_t>("number of dimensions");
    if (n_dims < 1 || n_dims > 4)
      fail("has " + std::to_string(n_dims) + " dimensions; 1 to 4 are possible");
    uint64_t n_elements = 1;
    for (uint32_t d = 0; d < n_dims; ++d) {
      const uint64_t n = in.number<uint64_t>("dimension");
      t.ne.push_back(n);
      if (n == 0) fail("has an empty dimension");
      if (__builtin_mul_overflow(n_elements, n, &n_elements) || n_elements > kMaxElements)
        fail("is too large: " + t.shape());
    }
    t.type = in.number<uint32_t>("tensor type");
    t.offset = in.number<uint64_t>(
        "tensor offset");  // relative to the data until the directory's end is known
    if (t.offset % alignment != 0) {
      fail(
          "begins at " + std::to_string(t.offset) + ", not a multiple of general.alignment " +
          std::to_string(alignment));
    }
    t.shard = shard;
    t.n_bytes = 0;
    t.data = nullptr;
    if (const DTypeInfo info = gguf_type_info(t.type); info.name) {
      if (t.ne[0] % info.block_size != 0) {
        fail(
            "has rows of " + std::to_string(t.ne[0]) + " values, not whole blocks of " +
            std::to_string(info.block_size) + " (" + info.name + ")");
      }
      if (__builtin_mul_overflow(
              n_elements / info.block_size, uint64_t{info.block_bytes}, &t.n_bytes)) {
        fail("is too large: " + t.shape());
      }
    }
    if (!tensor_index.emplace(t.name, tensors.size()).second) fail("appears twice");
    tensors.push_back(std::move(t));
  }

  // No overflow: the directory ends inside the file, and a file is far smaller than 2^63.
  const uint64_t data_begin = (in.offset() + alignment - 1) / alignment * alignment;
  for (size_t i = first; i < tensors.size(); ++i) {
    GgufTensor& t = tensors[i];
    uint64_t end;
    if (__builtin_add_overflow(t.offset, data_begin, &t.offset) ||
        __builtin_add_overflow(t.offset, t.n_bytes, &end) || end > file.size()) {
      in.fail(
          t.offset,
          "tensor " + quoted(t.name) + " of " + std::to_string(t.n_bytes) +
              " bytes ends past the file (" + std::to_string(file.size()) +
              " bytes); is the download complete?");
    }
    if (gguf_type_info(t.type).name) t.data = file.data() + t.offset;
  }
}

namespace {

const GgufKey* find(const std::vector<GgufKey>& keys, std::string_view name) {
  for (const GgufKey& key : keys) {
    if (key.key == name) return &key;
  }
  return nullptr;
}

// A small number that the container itself needs, before there is a GgufFile to ask.
std::optional<uint64_t> container_number(
    const std::vector<GgufKey>& keys, std::string_view name, const std::string& path) {
  const GgufKey* key = find(keys, name);
  if (!key) return std::nullopt;
  bool ok;
  const int64_t n = to_int(key->value, ok);
  if (!ok || n < 0)
    throw FormatError(
        path, key->offset, std::string(name) + " is not a count but " + type_name(key->type));
  return static_cast<uint64_t>(n);
}

std::string shard_name(const std::string& stem, uint64_t i, uint64_t n) {
  char suffix[64];
  std::snprintf(
      suffix,
      sizeof suffix,
      "-%05llu-of-%05llu.gguf",
      static_cast<unsigned long long>(i),
      static_cast<unsigned long long>(n));
  return stem + suffix;
}

}  // namespace

std::vector<GgufKey> GgufFile::Impl::read_file(int shard) {
  const std::string& path = files[shard].path();
  Cursor in(files[shard]);
  uint64_t n_tensors = 0, n_keys = 0;
  read_header(in, n_tensors, n_keys);
  std::vector<GgufKey> found = read_keys(in, n_keys);

  std::unordered_map<std::string_view, size_t> index;
  for (size_t i = 0; i < found.size(); ++i) {
    if (!index.emplace(found[i].key, i).second)
      in.fail(found[i].offset, "key " + quoted(found[i].key) + " appears twice");
  }
  const uint64_t alignment = container_number(found, "general.alignment", path).value_or(32);
  // 8: views of f32 and f16 tensors are read in place; the format demands a multiple of 8 too.
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > (1 << 20)) {
    in.fail(
        find(found, "general.alignment")->offset,
        "general.alignment is " + std::to_string(alignment) +
            "; a power of two from 8 to 1048576 is possible");
  }
  if (shard == 0) {
    keys = std::move(found);
    key_index = std::move(index);
    found = keys;
  }
  read_tensors(in, n_tensors, alignment, shard);
  return found;
}

void GgufFile::Impl::open_shards() {
  const std::string path = files[0].path();
  const uint64_t n_shards = container_number(keys, "split.count", path).value_or(1);
  const uint64_t i_shard = container_number(keys, "split.no", path).value_or(0);
  if (n_shards <= 1) return;
  const uint64_t at = find(keys, "split.count")->offset;
  if (n_shards > 99999 || i_shard >= n_shards) {
    throw FormatError(
        path,
        at,
        "shard " + std::to_string(i_shard) + " of " + std::to_string(n_shards) +
            " is not possible");
  }
  const std::string own = shard_name("", i_shard + 1, n_shards);
  if (!path.ends_with(own)) {
    throw FormatError(
        path,
        at,
        "one of " + std::to_string(n_shards) + " shards; to find the others its name must end in " +
            own);
  }
  const std::string stem = path.substr(0, path.size() - own.size());
  const std::string first = shard_name(stem, 1, n_shards);
  if (i_shard != 0) {
    throw UnsupportedModel(
        path + ": shard " + std::to_string(i_shard + 1) + " of " + std::to_string(n_shards) +
            "; open the first one, " + first,
        "split.no",
        std::to_string(i_shard),
        "0");
  }
  for (uint64_t i = 1; i < n_shards; ++i) {
    const std::string next = shard_name(stem, i + 1, n_shards);
    try {
      files.emplace_back(next);
    } catch (const IoError& e) {
      throw IoError(
          std::string(e.what()) + " (shard " + std::to_string(i + 1) + " of " +
              std::to_string(n_shards) + " of " + path + ")",
          next,
          e.errno_value);
    }
    const std::vector<GgufKey> own_keys = read_file(static_cast<int>(i));
    const auto number = container_number(own_keys, "split.no", next);
    const auto count = container_number(own_keys, "split.count", next);
    if (number.value_or(i) != i || count.value_or(n_shards) != n_shards) {
      throw FormatError(
          next,
          0,
          "says it is shard " + std::to_string(number.value_or(i) + 1) + " of " +
              std::to_string(count.value_or(n_shards)) + ", its name says otherwise");
    }
  }
  const auto n_tensors = container_number(keys, "split.tensors.count", path);
  if (n_tensors && *n_tensors != tensors.size()) {
    throw FormatError(
        path,
        find(keys, "split.tensors.count")->offset,
        "split.tensors.count is " + std::to_string(*n_tensors) + ", the shards hold " +
            std::to_string(tensors.size()) + " tensors");
  }
}

GgufFile::GgufFile() : impl_(std::make_unique<Impl>()) {}
GgufFile::~GgufFile() = default;

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path) {
  std::shared_ptr<GgufFile> file(new GgufFile);
  file->impl_->files.emplace_back(path);
  file->impl_->read_file(0);
  file->impl_->open_shards();
  return file;
}

const std::string& GgufFile::path() const { return impl_->files[0].path(); }
uint32_t GgufFile::version() const { return impl_->version; }
int GgufFile::n_shards() const { return static_cast<int>(impl_->files.size()); }
const std::string& GgufFile::shard_path(int shard) const { return impl_->files[shard].path(); }
const MappedFile& GgufFile::shard(int shard) const { return impl_->files[shard]; }
const std::vector<GgufKey>& GgufFile::keys() const { return impl_->keys; }
const std::vector<GgufTensor>& GgufFile::tensors() const { return impl_->tensors; }

uint64_t GgufFile::file_bytes() const {
  uint64_t n = 0;
  for (const MappedFile& file : impl_->files) n += file.size();
  return n;
}

const GgufKey* GgufFile::find_key(std::string_view key) const {
  const auto it = impl_->key_index.find(key);
  return it == impl_->key_index.end() ? nullptr : &impl_->keys[it->second];
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = impl_->tensor_index.find(name);
  return it == impl_->tensor_index.end() ? nullptr : &impl_->tensors[it->second];
}

namespace {

[[noreturn]] void wrong_type(const GgufFile& file, const GgufKey& key, const char* expected) {
  std::string found = type_name(key.type);
  if (const auto* array = std::get_if<GgufArray>(&key.value))
    found += std::string(" of ") + type_name(array->element_type);
  throw FormatError(
      file.path(),
      key.offset,
      "key " + quoted(key.key) + " is " + found + "; expected " + expected);
}

// One element, or each element of an array, through `convert(value, ok)`.
template <class T, class Convert>
std::vector<T> convert_array(
    const GgufFile& file, const GgufKey& key, Convert convert, const char* expected) {
  bool ok = true;
  std::vector<T> out;
  const auto* array = std::get_if<GgufArray>(&key.value);
  if (!array) {
    out.push_back(convert(key.value, ok));
  } else {
    const uint64_t step = scalar_bytes(array->element_type);
    if (step == 0) wrong_type(file, key, expected);
    out.reserve(array->count);
    for (uint64_t i = 0; i < array->count && ok; ++i) {
      out.push_back(convert(load_scalar(array->element_type, array->data + i * step), ok));
    }
  }
  if (!ok) wrong_type(file, key, expected);
  return out;
}

}  // namespace

std::optional<int64_t> GgufFile::get_int(std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  bool ok;
  const int64_t value = to_int(key->value, ok);
  if (!ok) wrong_type(*this, *key, "an integer");
  return value;
}

std::optional<double> GgufFile::get_float(std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  bool ok;
  const double value = to_float(key->value, ok);
  if (!ok) wrong_type(*this, *key, "a number");
  return value;
}

std::optional<bool> GgufFile::get_bool(std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  if (const auto* b = std::get_if<bool>(&key->value)) return *b;
  bool ok;
  const int64_t value = to_int(key->value, ok);
  if (!ok || (value != 0 && value != 1)) wrong_type(*this, *key, "a bool");
  return value == 1;
}

std::optional<std::string_view> GgufFile::get_string(std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  const auto* s = std::get_if<std::string_view>(&key->value);
  if (!s) wrong_type(*this, *key, "a string");
  return *s;
}

std::optional<std::vector<int64_t>> GgufFile::get_int_array(std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  return convert_array<int64_t>(*this, *key, to_int, "integers");
}

std::optional<std::vector<double>> GgufFile::get_float_array(std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  return convert_array<double>(*this, *key, to_float, "numbers");
}

std::optional<std::vector<std::string_view>> GgufFile::get_string_array(
    std::string_view name) const {
  const GgufKey* key = find_key(name);
  if (!key) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(&key->value);
  if (!array || array->element_type != GgufType::kString)
    wrong_type(*this, *key, "an array of strings");
  std::vector<std::string_view> out;
  out.reserve(array->count);
  const uint8_t* p = array->data;
  for (uint64_t i = 0; i < array->count; ++i) {  // lengths were checked when the file was opened
    const uint64_t n = load<uint64_t>(p);
    out.emplace_back(reinterpret_cast<const char*>(p + 8), static_cast<size_t>(n));
    p += 8 + n;
  }
  return out;
}

}  // namespace grebe
