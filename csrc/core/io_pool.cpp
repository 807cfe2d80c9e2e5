#include "core/io_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>

namespace grebe {

IoPool::~IoPool() {
  if (!threads_.empty() && pid_ != getpid()) {  // they stayed in the parent
    for (std::thread& t : threads_) t.detach();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void IoPool::start() {
  if (threads_.empty()) pid_ = getpid();
  while (threads_.size() < static_cast<size_t>(n_threads_)) {
    threads_.emplace_back([this] { work(); });
  }
}

void IoPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return ending_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::function<void()> f = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    f();
    lock.lock();
  }
}

void IoPool::post(std::function<void()> f) {
  {
    std::lock_guard lock(mutex_);
    start();
    queue_.push_back(std::move(f));
  }
  wake_.notify_one();
}

void IoPool::parallel_for(int64_t n, const std::function<void(int64_t)>& f) {
  struct Job {
    const std::function<void(int64_t)>* f;
    int64_t n;
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable done;
    int64_t n_done = 0;
  };
  // Helpers that come too late find nothing to claim and touch only the job itself.
  auto job = std::make_shared<Job>();
  job->f = &f;
  job->n = n;
  const auto help = [](Job& j) {
    int64_t mine = 0;
    for (int64_t i; (i = j.next.fetch_add(1)) < j.n; mine++) (*j.f)(i);
    if (mine == 0) return;
    std::lock_guard lock(j.mutex);
    j.n_done += mine;
    if (j.n_done == j.n) j.done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(n_threads_, n - 1);
  try {
    for (int64_t i = 0; i < helpers; i++) post([job, help] { help(*job); });
  } catch (const std::exception&) {  // no memory or no thread: with fewer helpers then
  }
  help(*job);
  std::unique_lock lock(job->mutex);
  job->done.wait(lock, [&] { return job->n_done == job->n; });
}

}  // namespace grebe
