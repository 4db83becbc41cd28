// What runs the steps: kernel launches, sorting and scanning on one stream. The first error stays.
#pragma once
#include "cuda_block.h"

#if defined(__CUDACC__)
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

namespace gw {
namespace cuda {

template <class F>
__global__ void __launch_bounds__(BLOCK, 4) each_kernel(int64_t count, F f) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * BLOCK + threadIdx.x;
  if (i < count) f(i);
}
template <class F>
__global__ void __launch_bounds__(BLOCK, F::RESIDENT) blocks_kernel(F f) {
  __shared__ typename F::Shared shared;
  f.run(Block{}, shared, blockIdx.x);
}

struct Machine {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  explicit Machine(void *handle) : stream(static_cast<cudaStream_t>(handle)) {}
  void keep(cudaError_t result) {
    if (error == cudaSuccess) error = result;
  }
  int32_t status() const { return error == cudaSuccess ? GW_OK : GW_CUDA_ERROR + static_cast<int32_t>(error); }

  // A thread for each i in 0..count-1.
  template <class F>
  void each(int64_t count, const F &f) {
    if (!count || error) return;
    each_kernel<<<static_cast<unsigned>((count + BLOCK - 1) / BLOCK), BLOCK, 0, stream>>>(count, f);
    keep(cudaGetLastError());
  }
  // A block for each i in 0..count-1.
  template <class F>
  void blocks(int64_t count, const F &f) {
    if (!count || error) return;
    blocks_kernel<<<static_cast<unsigned>(count), BLOCK, 0, stream>>>(f);
    keep(cudaGetLastError());
  }
  template <class T>
  void zero(T *data, int64_t count) {
    if (count && !error) keep(cudaMemsetAsync(data, 0, sizeof(T) * static_cast<size_t>(count), stream));
  }
  template <class T>
  T read(const T *data) {
    T value = {};
    if (!error) keep(cudaMemcpyAsync(&value, data, sizeof value, cudaMemcpyDeviceToHost, stream));
    if (!error) keep(cudaStreamSynchronize(stream));
    return value;
  }
  // out[i] = sum of in[0..i-1]. With no memory, sets `bytes` to what is needed; so does sort.
  void scan(void *memory, size_t &bytes, const uint32_t *in, int64_t *out, int64_t count) {
    if (error) return;
    keep(cub::DeviceScan::ExclusiveScan(memory, bytes, in, out, cuda_plus{}, int64_t{0}, count, stream));
  }
  // A stable sort by the lowest `bits`.
  template <class Key>
  void sort(void *memory, size_t &bytes, const Key *keys_in, Key *keys, const uint32_t *in, uint32_t *out, int64_t count,
            int bits) {
    if (error) return;
    keep(cub::DeviceRadixSort::SortPairs(memory, bytes, keys_in, keys, in, out, count, 0, bits, stream));
  }

  struct cuda_plus {
    __host__ __device__ int64_t operator()(int64_t a, int64_t b) const { return a + b; }
  };
};

// Devices that the library has code for: compute capability 8.0 or newer.
inline int32_t count_devices(int32_t &count) {
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  cudaGetLastError();
  count = 0;
  for (int device = 0; device < found && error == cudaSuccess; device++) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 8) count++;
  }
  return error == cudaSuccess ? GW_OK : GW_CUDA_ERROR + static_cast<int32_t>(error);
}
inline const char *error_text(int32_t status) { return cudaGetErrorString(static_cast<cudaError_t>(status - GW_CUDA_ERROR)); }

}  // namespace cuda
}  // namespace gw
#endif
