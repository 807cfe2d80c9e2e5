// Threads that wait for a disk. They sleep when there is nothing to do, and more of them than cores
// make sense, which is what sets them apart from ThreadPool.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace grebe {

class IoPool {
 public:
  explicit IoPool(int n_threads) : n_threads_(n_threads) {}
  /// What has been posted is done first.
  ~IoPool();
  IoPool(const IoPool&) = delete;
  IoPool& operator=(const IoPool&) = delete;

  /// Calls f(i) for i in [0, n), by these threads and the caller; returns when all are done. f must
  /// not throw. From several threads at once if need be.
  void parallel_for(int64_t n, const std::function<void(int64_t)>& f);
  /// Calls f some time. It must not throw.
  void post(std::function<void()> f);

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<std::function<void()>> queue;
    std::vector<std::thread> threads;  // started with the first work
    bool ending = false;
  };
  void work();

  const int n_threads_;
  int pid_ = 0;  // of the process that has the threads
  std::unique_ptr<State> state_ = std::make_unique<State>();
};

}  // namespace grebe
