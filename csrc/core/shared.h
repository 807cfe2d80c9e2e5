// Copy on write over shared_ptr.
#pragma once

#include <atomic>
#include <memory>

namespace grebe {

/// True when nobody else holds p, and then everything that former holders did to *p has happened.
/// Only meaningful for a caller that keeps p from being copied meanwhile.
template <class T>
bool sole_owner(const std::shared_ptr<T>& p) {
  const bool sole = p.use_count() == 1;
  std::atomic_thread_fence(std::memory_order_acquire);
  return sole;
}

}  // namespace grebe
