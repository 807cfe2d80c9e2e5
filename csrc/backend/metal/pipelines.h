// Libraries and pipelines, made when first asked for and kept.
//
// One library per file of metal/; its text is embedded in the extension. A pipeline is a kernel
// with its function constants fixed.
#pragma once

#include <cstdint>
#include <future>
#include <span>
#include <string>
#include <unordered_map>

#include "backend/metal/device.h"

namespace grebe::metal {

/// The text of metal/<name>.metal with its includes, or null.
const char* library_source(const std::string& name);

class PipelineCache {
 public:
  struct Pipeline {
    uint32_t id = 0;
    uint32_t max_threads = 0;  ///< of a threadgroup
  };

  explicit PipelineCache(Device& device) : device_(device) {}

  /// Starts compiling libraries in the background, side by side. What fails is reported when it is
  /// used.
  void compile_ahead(std::span<const char* const> libraries);
  /// By one thread at a time. Throws BackendError with the compiler's message.
  Pipeline pipeline(const char* library, const char* kernel, std::span<const Constant> constants);

 private:
  std::shared_future<uint32_t> library(const std::string& name);

  Device& device_;
  std::unordered_map<std::string, std::shared_future<uint32_t>> libraries_;
  std::unordered_map<std::string, Pipeline> pipelines_;  // by library, kernel and constants
  std::string key_;
};

}  // namespace grebe::metal
