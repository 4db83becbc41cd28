// The other emulation: each thread of a block is a thread of the CPU, and barriers are barriers. Slow, but under
// ThreadSanitizer it shows a missing barrier for what it is (C++20; see cuda_emulated.h for the usual one).
#pragma once
#include <array>
#include <atomic>
#include <barrier>
#include <thread>

#include "cuda_call.h"

namespace gw {
namespace cuda {

struct Meeting {  // of the threads of a block, or of a warp
  explicit Meeting(int count) : barrier(count) {}
  std::barrier<> barrier;
  std::atomic<uint32_t> votes{0};
  void wait() { barrier.arrive_and_wait(); }
  // All bits that the threads give, as each of them sees it.
  uint32_t collect(uint32_t bit, bool first) {
    votes |= bit;
    wait();
    const uint32_t found = votes;
    wait();
    if (first) votes = 0;
    wait();
    return found;
  }
};
inline Meeting block_meeting(BLOCK);
inline std::array<Meeting, WARPS> warp_meetings{Meeting(WARP), Meeting(WARP), Meeting(WARP), Meeting(WARP),
                                                Meeting(WARP), Meeting(WARP), Meeting(WARP), Meeting(WARP)};
inline thread_local int thread_index = 0;

template <class T>
struct PerThread {
  T value;
  T &operator[](int) { return value; }
};

struct Warp {
  int index;
  template <class F>
  void each(F f) const {
    f(thread_index % WARP);
    warp_meetings[index].wait();
  }
  template <class P>
  uint32_t ballot(P pred) const {
    const int lane = thread_index % WARP;
    return warp_meetings[index].collect(pred(lane) ? 1u << lane : 0u, lane == 0);
  }
};

struct Block {
  template <class F>
  void each(F f) const {
    f(thread_index);
    block_meeting.wait();
  }
  template <class F>
  void warps(F f) const {
    f(Warp{thread_index / WARP});
    block_meeting.wait();
  }
  template <class P>
  bool any(P pred) const {
    return block_meeting.collect(pred(thread_index) ? 1u : 0u, thread_index == 0) != 0;
  }
};

template <class F>
void run_blocks(int64_t count, const F &f, typename F::Shared &shared) {
  std::vector<std::thread> threads;
  for (int t = 0; t < BLOCK; t++)
    threads.emplace_back([&, t] {
      thread_index = t;
      for (int64_t i = 0; i < count; i++) {
        if (t == 0) std::memset(static_cast<void *>(&shared), 0xff, sizeof shared);
        block_meeting.wait();
        f.run(Block{}, shared, i);
        block_meeting.wait();
      }
    });
  for (std::thread &thread : threads) thread.join();
}

}  // namespace cuda
}  // namespace gw
