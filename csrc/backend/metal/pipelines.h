// Libraries and pipelines, made when first asked for and kept.
//
// One library per file of metal/; its text is embedded in the extension. A pipeline is a kernel
// with its function constants fixed.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/metal/device.h"

namespace grebe::metal {

/// The text of metal/<name>.metal with its includes, or null.
const char* library_source(const std::string& name);

class PipelineCache {
 public:
  explicit PipelineCache(Device& device) : device_(device) {}

  /// Throws BackendError with the compiler's message.
  uint32_t pipeline(const char* library, const char* kernel, std::span<const Constant> constants);
  /// Compiles libraries on several threads; what fails is reported when it is used.
  void compile(std::span<const char* const> libraries);

 private:
  uint32_t library(const std::string& name);

  Device& device_;
  std::mutex mutex_;
  std::map<std::string, uint32_t> libraries_;
  std::map<std::string, uint32_t> pipelines_;  // by library, kernel and constants
};

}  // namespace grebe::metal
