#include "pool.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace gw {
namespace {

// Denormal numbers count as zero while tasks run: the light behind an opaque pixel decays into them, and they are slow.
struct WithoutDenormals {
#if defined(__SSE__)
  unsigned saved = _mm_getcsr();
  WithoutDenormals() { _mm_setcsr(saved | 0x8040); }
  ~WithoutDenormals() { _mm_setcsr(saved); }
#endif
};

}  // namespace

Pool::Pool(int threads) {
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
  } catch (...) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    start_.notify_all();
    for (auto &worker : workers_) worker.join();
    throw;
  }
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (auto &worker : workers_) worker.join();
}

void Pool::take_tasks() {
  const WithoutDenormals mode;
  for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) call_(task_, i);
}

void Pool::run_erased(int count, Call call, const void *task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    call_ = call;
    task_ = task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    open_ = count > 1 && !workers_.empty();
    generation_++;
  }
  if (open_) start_.notify_all();
  take_tasks();
  std::unique_lock<std::mutex> lock(mutex_);
  open_ = false;  // who has not woken up yet need not come
  finished_.wait(lock, [this] { return active_ == 0; });
}

void Pool::work() {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    start_.wait(lock, [&] { return stop_ || (open_ && generation_ != seen); });
    if (stop_) return;
    seen = generation_;
    active_++;
    lock.unlock();
    take_tasks();
    lock.lock();
    if (--active_ == 0) finished_.notify_one();
  }
}

}  // namespace gw
