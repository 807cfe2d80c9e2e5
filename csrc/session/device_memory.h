// Memory of a backend, owned.
#pragma once

#include <cstdint>
#include <utility>

#include "backend/backend.h"

namespace grebe {

/// Memory of a backend, released on destruction.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Backend& backend, uint64_t bytes, const char* what)
      : backend_(&backend), data_(backend.allocate(bytes, what)), bytes_(bytes) {}
  ~DeviceMemory() {
    if (data_) backend_->release(data_, bytes_);
  }
  DeviceMemory(DeviceMemory&& o) noexcept { *this = std::move(o); }
  DeviceMemory& operator=(DeviceMemory&& o) noexcept {
    std::swap(backend_, o.backend_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace grebe
