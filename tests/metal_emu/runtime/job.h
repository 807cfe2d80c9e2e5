// One dispatch, prepared.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "library.h"

namespace msl {

struct Job {
  Library* library = nullptr;
  const msl_kernel* kernel = nullptr;
  msl_context context{};  // buffers
  uint32_t threadgroup_bytes[32] = {};
  uint32_t grid[3] = {}, groups[3] = {}, threads[3] = {};
  bool by_threads = false;
  uint64_t seed = 0, hazard = 0;
  uint64_t n_groups = 1;
  uint64_t order_step = 1, order_offset = 0;  // threadgroups run in a permuted order
  std::atomic<uint64_t> next{0};
  std::atomic<bool> abandoned{false};
  uint32_t number = 0;  // of the dispatch
};

}  // namespace msl
