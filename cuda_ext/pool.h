// A few threads that sleep until there is work; the caller works too. No spinning.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gw {

class Pool {
 public:
  explicit Pool(int threads);  // in all, the caller's included; throws std::system_error when threads are short
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;
  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0..count-1), each once, on any thread in any order; returns when all are done. Tasks must not throw.
  template <class Task>
  void run(int count, const Task &task) {
    run_erased(count, [](const void *f, int i) { (*static_cast<const Task *>(f))(i); }, &task);
  }

 private:
  using Call = void (*)(const void *, int);
  void run_erased(int count, Call call, const void *task);
  void work();
  void take_tasks();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, finished_;
  Call call_ = nullptr;
  const void *task_ = nullptr;
  std::atomic<int> next_{0};
  int count_ = 0, active_ = 0;
  uint64_t generation_ = 0;
  bool open_ = false, stop_ = false;
};

}  // namespace gw
