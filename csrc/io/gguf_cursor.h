// Reading position in a GGUF file: every length is held against what is left before it is used.
//
// Private to io/gguf.cpp.
#pragma once

#include <cstring>
#include <string>
#include <string_view>

#include "core/error.h"
#include "io/gguf.h"

namespace grebe::gguf_internal {

// The format allows arrays of arrays; nobody writes more than one level.
inline constexpr int kMaxArrayDepth = 4;

inline uint64_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

inline const char* type_name(GgufType type) {
  static constexpr const char* kNames[] = {
      "u8",
      "i8",
      "u16",
      "i16",
      "u32",
      "i32",
      "f32",
      "bool",
      "string",
      "array",
      "u64",
      "i64",
      "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

template <class T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline GgufValue load_scalar(GgufType type, const uint8_t* p) {
  switch (type) {
    case GgufType::kU8:
      return uint64_t{*p};
    case GgufType::kI8:
      return int64_t{load<int8_t>(p)};
    case GgufType::kU16:
      return uint64_t{load<uint16_t>(p)};
    case GgufType::kI16:
      return int64_t{load<int16_t>(p)};
    case GgufType::kU32:
      return uint64_t{load<uint32_t>(p)};
    case GgufType::kI32:
      return int64_t{load<int32_t>(p)};
    case GgufType::kU64:
      return load<uint64_t>(p);
    case GgufType::kI64:
      return load<int64_t>(p);
    case GgufType::kF32:
      return double{load<float>(p)};
    case GgufType::kF64:
      return load<double>(p);
    case GgufType::kBool:
      return *p != 0;
    default:
      break;
  }
  throw Error("internal error: load_scalar");
}

// A position in one file; every read is checked against what is left.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}

  uint64_t offset() const { return offset_; }
  uint64_t left() const { return file_.size() - offset_; }

  [[noreturn]] void fail(uint64_t offset, const std::string& what) const {
    throw FormatError(file_.path(), offset, what);
  }

  const uint8_t* bytes(uint64_t n, const char* what) {
    if (n > left()) {
      fail(
          offset_,
          std::string(what) + " needs " + std::to_string(n) + " bytes, " + std::to_string(left()) +
              " are left in the file");
    }
    const uint8_t* p = file_.data() + offset_;
    offset_ += n;
    return p;
  }
  template <class T>
  T number(const char* what) {
    return load<T>(bytes(sizeof(T), what));
  }
  std::string_view string(const char* what) {
    const uint64_t n = number<uint64_t>(what);
    return {reinterpret_cast<const char*>(bytes(n, what)), static_cast<size_t>(n)};
  }
  GgufType type() {
    const uint64_t at = offset_;
    const uint32_t t = number<uint32_t>("value type");
    if (t > static_cast<uint32_t>(GgufType::kF64))
      fail(at, "value type " + std::to_string(t) + " does not exist");
    return static_cast<GgufType>(t);
  }

  GgufArray array(int depth) {
    const uint64_t at = offset_;
    if (depth > kMaxArrayDepth)
      fail(at, "arrays nested deeper than " + std::to_string(kMaxArrayDepth));
    GgufArray array{type(), number<uint64_t>("array length"), nullptr, 0};
    const GgufType t = array.element_type;
    const uint64_t element = t == GgufType::kString  ? 8
                             : t == GgufType::kArray ? 12
                                                     : scalar_bytes(t);
    if (array.count > left() / element) {
      fail(
          at,
          "array of " + std::to_string(array.count) + " " + type_name(t) + " does not fit the " +
              std::to_string(left()) + " bytes that are left in the file");
    }
    const uint64_t begin = offset_;
    array.data = file_.data() + begin;
    if (t == GgufType::kString) {
      for (uint64_t i = 0; i < array.count; ++i) string("array element");
    } else if (t == GgufType::kArray) {
      for (uint64_t i = 0; i < array.count; ++i) this->array(depth + 1);
    } else {
      bytes(array.count * element, "array");
    }
    array.data_bytes = offset_ - begin;
    return array;
  }

  GgufValue value(GgufType type) {
    if (type == GgufType::kString) return string("string");
    if (type == GgufType::kArray) return array(1);
    return load_scalar(type, bytes(scalar_bytes(type), "value"));
  }

 private:
  const MappedFile& file_;
  uint64_t offset_ = 0;
};

}  // namespace grebe::gguf_internal
