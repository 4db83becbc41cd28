// How a block of threads is written here: as phases. `block.each(f)` runs f(t) for its threads and then waits for all;
// `block.warps(f)` runs f(warp) for its warps and waits; inside, `warp.each(f)` runs f(lane). What a thread keeps from
// phase to phase lies in a PerThread. cuda_emulated.h gives the same words a meaning on a CPU, phase by phase.
#pragma once
#include "cuda_call.h"

#if defined(__CUDACC__)
namespace gw {
namespace cuda {

// Blocks that fill a multiprocessor: consumer GPUs hold 1536 threads, the others 2048.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int FULL = 6;
#else
constexpr int FULL = 8;
#endif

template <class T>
struct PerThread {
  T value;
  GW_DEVICE T &operator[](int) { return value; }
};

struct Warp {
  int index;  // in its block
  template <class F>
  GW_DEVICE void each(F f) const {
    f(static_cast<int>(threadIdx.x) % WARP);
    __syncwarp();
  }
  // Bit `lane`: pred(lane).
  template <class P>
  GW_DEVICE uint32_t ballot(P pred) const {
    return __ballot_sync(0xffffffffu, pred(static_cast<int>(threadIdx.x) % WARP));
  }
};

struct Block {
  template <class F>
  GW_DEVICE void each(F f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class F>
  GW_DEVICE void warps(F f) const {
    f(Warp{static_cast<int>(threadIdx.x) / WARP});
    __syncthreads();
  }
  template <class P>
  GW_DEVICE bool any(P pred) const {
    return __syncthreads_or(pred(static_cast<int>(threadIdx.x)));
  }
};

GW_DEVICE int first_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
GW_DEVICE int bit_count(uint32_t bits) { return __popc(bits); }
GW_DEVICE void add_atomically(float *to, float value) { atomicAdd(to, value); }
GW_DEVICE uint32_t count_atomically(uint32_t *count) { return atomicAdd(count, 1u); }
GW_DEVICE float exp2_pixel(float x) {  // relative error 2e-7
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GW_DEVICE float divide_pixel(float a, float b) { return __fdividef(a, b); }

}  // namespace cuda
}  // namespace gw
#else
#include "cuda_emulated.h"
#endif
