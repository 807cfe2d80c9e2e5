// The token ids of a session, shared with its forks until one of them goes its own way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/shared.h"

namespace grebe {

class TokenLog {
 public:
  TokenLog() : log_(std::make_shared<std::vector<int32_t>>()) {}

  int64_t size() const { return size_; }
  std::span<const int32_t> view() const { return {log_->data(), static_cast<size_t>(size_)}; }

  /// Makes the next append of up to n tokens unable to fail. Strong guarantee.
  void reserve(int64_t n) {
    const size_t need = static_cast<size_t>(size_ + n);
    if (sole_owner(log_) && log_->capacity() >= need) return;
    auto own = std::make_shared<std::vector<int32_t>>();
    own->reserve(std::max(need, need + need / 2));
    own->assign(log_->begin(), log_->begin() + size_);
    log_ = std::move(own);
  }
  /// After reserve() of at least as many.
  void append(std::span<const int32_t> tokens) {
    log_->resize(static_cast<size_t>(size_));
    log_->insert(log_->end(), tokens.begin(), tokens.end());
    size_ += static_cast<int64_t>(tokens.size());
  }
  void truncate(int64_t n) { size_ = std::min(size_, n); }

 private:
  std::shared_ptr<std::vector<int32_t>>
      log_;  // may be longer than size_: the rest belongs to others
  int64_t size_ = 0;
};

}  // namespace grebe
