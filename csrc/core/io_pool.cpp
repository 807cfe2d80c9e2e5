#include "core/io_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>

namespace grebe {

IoPool::~IoPool() {
  if (!state_->threads.empty() && pid_ != getpid()) {
    (void)state_.release();  // a forked child has none of the threads that it names
    return;
  }
  {
    std::lock_guard lock(state_->mutex);
    state_->ending = true;
  }
  state_->wake.notify_all();
  for (std::thread& t : state_->threads) t.join();
}

void IoPool::work() {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  for (;;) {
    s.wake.wait(lock, [&] { return s.ending || !s.queue.empty(); });
    if (s.queue.empty()) return;
    const std::function<void()> f = std::move(s.queue.front());
    s.queue.pop_front();
    lock.unlock();
    f();
    lock.lock();
  }
}

void IoPool::post(std::function<void()> f) {
  State& s = *state_;
  {
    std::lock_guard lock(s.mutex);
    if (s.threads.empty()) pid_ = getpid();
    while (s.threads.size() < static_cast<size_t>(n_threads_)) {
      s.threads.emplace_back([this] { work(); });
    }
    s.queue.push_back(std::move(f));
  }
  s.wake.notify_one();
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
