// A CPU in the place of the GPU, for tests: the kernels' own text, phase by phase. It proves everything but the hardware
// and true concurrency; as threads of a phase may run here in any order (gw_emulated_order), a result that hangs on
// their order, or on a barrier that is not there, shows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "cuda_call.h"
#if defined(GW_EMULATED_THREADS)
#include "cuda_emulated_threads.h"
#endif

namespace gw {
namespace cuda {

constexpr int FULL = 1;  // of no meaning here

// Place t of `count` (a power of two) in the order of this run: t itself, or t turned by an odd step and an offset.
inline uint32_t order_seed = 0;
inline int in_order(int t, int count) {
  if (!order_seed) return t;
  return static_cast<int>((static_cast<uint32_t>(t) * (2 * order_seed + 1) + order_seed * 7) & static_cast<uint32_t>(count - 1));
}

#if !defined(GW_EMULATED_THREADS)
template <class T>
struct PerThread {
  T value[BLOCK];
  T &operator[](int t) { return value[t]; }
};

struct Warp {
  int index;
  template <class F>
  void each(F f) const {
    for (int i = 0; i < WARP; i++) f(in_order(i, WARP));
  }
  template <class P>
  uint32_t ballot(P pred) const {
    uint32_t bits = 0;
    each([&](int lane) { bits |= pred(lane) ? 1u << lane : 0u; });
    return bits;
  }
};

struct Block {
  template <class F>
  void each(F f) const {
    for (int i = 0; i < BLOCK; i++) f(in_order(i, BLOCK));
  }
  template <class F>
  void warps(F f) const {
    for (int i = 0; i < WARPS; i++) f(Warp{in_order(i, WARPS)});
  }
  template <class P>
  bool any(P pred) const {
    bool found = false;
    each([&](int t) { found |= pred(t); });
    return found;
  }
};

template <class F>
void run_blocks(int64_t count, const F &f, typename F::Shared &shared) {
  for (int64_t i = 0; i < count; i++) {
    std::memset(static_cast<void *>(&shared), 0xff, sizeof shared);  // NaN: what is read must have been written
    f.run(Block{}, shared, order_seed ? count - 1 - i : i);
  }
}
#endif

inline int first_bit(uint32_t bits) { return __builtin_ctz(bits); }
inline int bit_count(uint32_t bits) { return __builtin_popcount(bits); }
inline void add_atomically(float *to, float value) { *to += value; }
inline uint32_t count_atomically(uint32_t *count) { return (*count)++; }
inline float exp2_pixel(float x) { return exp2f(x); }
inline float divide_pixel(float a, float b) { return a / b; }

struct Machine {
  explicit Machine(void *) {}
  int32_t status() const { return GW_OK; }

  template <class F>
  void each(int64_t count, const F &f) {
    for (int64_t i = 0; i < count; i++) f(order_seed ? count - 1 - i : i);
  }
  template <class F>
  void blocks(int64_t count, const F &f) {
    const auto shared = std::make_unique<typename F::Shared>();
    run_blocks(count, f, *shared);
  }
  template <class T>
  void zero(T *data, int64_t count) {
    if (count) std::memset(static_cast<void *>(data), 0, sizeof(T) * static_cast<size_t>(count));
  }
  template <class T>
  T read(const T *data) {
    return *data;
  }
  void scan(void *memory, size_t &bytes, const uint32_t *in, int64_t *out, int64_t count) {
    if (!memory) return void(bytes = 1);
    int64_t sum = 0;
    for (int64_t i = 0; i < count; sum += in[i++]) out[i] = sum;
  }
  template <class Key>
  void sort(void *memory, size_t &bytes, const Key *keys_in, Key *keys, const uint32_t *in, uint32_t *out, int64_t count,
            int bits) {
    if (!memory) return void(bytes = 1);
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    const Key mask = bits >= static_cast<int>(8 * sizeof(Key)) ? ~Key{0} : (Key{1} << bits) - 1;
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return (keys_in[a] & mask) < (keys_in[b] & mask); });
    for (size_t i = 0; i < order.size(); i++) {
      keys[i] = keys_in[order[i]];
      out[i] = in[order[i]];
    }
  }
};

inline int32_t count_devices(int32_t &count) {
  count = 1;
  return GW_OK;
}
inline const char *error_text(int32_t) { return "emulated"; }

}  // namespace cuda
}  // namespace gw
