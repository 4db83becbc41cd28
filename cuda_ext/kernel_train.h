// The training and video kernels of one instruction set as a table; included once per isa_train_*.cpp.
#pragma once
#include "kernel_loss.h"
#include "kernel_yuv.h"

namespace gw {
namespace GW_ISA {

// One Adam step of floats begin..end-1. Source: Kingma and Ba, "Adam", 2015, as torch.optim.Adam orders it.
inline void adam(const gw_adam_tensor &tensor, const AdamRates &rates, int64_t begin, int64_t end) {
  const vf beta1(rates.beta1), rest1(rates.rest1), beta2(rates.beta2), rest2(rates.rest2);
  const vf eps(rates.eps), second_scale(rates.second_scale), step(rates.step);
  for (int64_t at = begin; at < end; at += LANES) {
    const int count = lanes_left(end - at);
    const vf g = load_first_(tensor.gradients + at, count);
    const vf first = fma_(beta1, load_first_(tensor.first + at, count), rest1 * g);
    const vf second = fma_(beta2, load_first_(tensor.second + at, count), rest2 * g * g);
    const vf root = fma_(sqrt_(second), second_scale, eps);
    store_first_(tensor.first + at, count, first);
    store_first_(tensor.second + at, count, second);
    store_first_(tensor.values + at, count, fnma_(step, first / root, load_first_(tensor.values + at, count)));
  }
}

inline bool any_nonzero(const float *values, int64_t count) {
  for (int64_t at = 0; at < count; at += LANES) {
    const vf x = load_first_(values + at, lanes_left(count - at));
    if (bits_((x >= vf(0.0f)) & (x <= vf(0.0f))) != 0xffffu) return true;
  }
  return false;
}

inline const TrainKernels train_table = {loss_tile, adam, any_nonzero, yuv_rows};

}  // namespace GW_ISA
}  // namespace gw
