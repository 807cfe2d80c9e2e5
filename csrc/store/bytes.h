// Numbers to and from the bytes of our files: little endian, packed.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/blake3.h"

namespace grebe {

class ByteWriter {
 public:
  template <class T>
  void put(T value) {
    put_bytes(&value, sizeof value);
  }
  void put(const Digest& digest) { put_bytes(digest.bytes.data(), digest.bytes.size()); }
  /// Length (u16) and bytes; what is longer is cut.
  void put_text(const std::string& text) {
    const size_t n = text.size() < 0xffff ? text.size() : 0xffff;
    put(static_cast<uint16_t>(n));
    put_bytes(text.data(), n);
  }
  void put_bytes(const void* from, size_t n) {
    const uint8_t* p = static_cast<const uint8_t*>(from);
    bytes_.insert(bytes_.end(), p, p + n);
  }
  void pad_to(size_t size) { bytes_.resize(size); }
  size_t size() const { return bytes_.size(); }
  std::vector<uint8_t>& bytes() { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

/// Reads past the end give zeros and clear ok(), for good.
class ByteReader {
 public:
  ByteReader(const uint8_t* data, size_t n) : data_(data), left_(n) {}

  template <class T>
  T get() {
    T value{};
    get_bytes(&value, sizeof value);
    return value;
  }
  Digest get_digest() {
    Digest digest;
    get_bytes(digest.bytes.data(), digest.bytes.size());
    return digest;
  }
  std::string get_text() {
    const size_t n = get<uint16_t>();
    if (!ok_ || n > left_) {
      ok_ = false;
      return {};
    }
    std::string text(reinterpret_cast<const char*>(data_), n);
    data_ += n;
    left_ -= n;
    return text;
  }
  void get_bytes(void* to, size_t n) {
    if (!ok_ || n > left_) {
      ok_ = false;
      return;
    }
    std::memcpy(to, data_, n);
    data_ += n;
    left_ -= n;
  }
  bool ok() const { return ok_; }
  size_t left() const { return left_; }

 private:
  const uint8_t* data_;
  size_t left_;
  bool ok_ = true;
};

}  // namespace grebe
