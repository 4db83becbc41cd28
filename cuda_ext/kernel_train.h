// The training and video kernels of one instruction set as a table; included once per isa_train_*.cpp.
#pragma once
#include "kernel_loss.h"
#include "kernel_yuv.h"

namespace gw {
namespace GW_ISA {

// The constants of a step in vectors, and the step of sixteen floats.
// Source: Kingma and Ba, "Adam", 2015, in the order of torch.optim.Adam.
struct AdamLanes {
  vf beta1, rest1, beta2, rest2, eps, second_scale, step;
  explicit AdamLanes(const AdamRates &r)
      : beta1(r.beta1), rest1(r.rest1), beta2(r.beta2), rest2(r.rest2), eps(r.eps), second_scale(r.second_scale), step(r.step) {}

  GW_INLINE void take(const gw_adam_tensor &tensor, int64_t at, int count, vm chosen) const {
    const vf g = load_first_(tensor.gradients + at, count), value = load_first_(tensor.values + at, count);
    const vf old_first = load_first_(tensor.first + at, count), old_second = load_first_(tensor.second + at, count);
    const vf first = fma_(beta1, old_first, rest1 * g), second = fma_(beta2, old_second, rest2 * g * g);
    const vf moved = fnma_(step, first / fma_(sqrt_(second), second_scale, eps), value);
    store_first_(tensor.first + at, count, select_(chosen, first, old_first));
    store_first_(tensor.second + at, count, select_(chosen, second, old_second));
    store_first_(tensor.values + at, count, select_(chosen, moved, value));
  }
  GW_INLINE void take_range(const gw_adam_tensor &tensor, int64_t begin, int64_t end) const {
    const vm all = mask_from_bits_(0xffffu);
    int64_t at = begin;
    for (; at + LANES <= end; at += LANES) take(tensor, at, LANES, all);
    if (at < end) take(tensor, at, static_cast<int>(end - at), all);
  }
};

inline void adam(const gw_adam_tensor &tensor, const AdamRates &rates, int64_t begin, int64_t end) {
  AdamLanes(rates).take_range(tensor, begin, end);
}

// Rows narrower than a vector: sixteen rows are `width` vectors, whose lanes look up the mark of their row.
struct NarrowRows {
  alignas(64) int32_t row[LANES * LANES];
  explicit NarrowRows(int32_t width) {
    for (int i = 0; i < LANES; i++)
      for (int32_t k = 0; k < width; k++) row[i * width + k] = i;
  }
  GW_INLINE vm marked(vf marks, int vector) const { return lookup_(marks, row + LANES * vector) > vf(0.0f); }
};

inline void adam_narrow(const gw_adam_tensor &tensor, const AdamLanes &lanes, const MarkedRows &rows) {
  const NarrowRows narrow(tensor.width);
  const int64_t begin = rows.begin * tensor.width, size = static_cast<int64_t>(rows.count) * tensor.width;
  for (int group = 0; group < rows.count; group += LANES) {
    const vf marks = load_(rows.marks + group);
    for (int k = 0; k < tensor.width; k++) {
      const int64_t at = static_cast<int64_t>(group) * tensor.width + LANES * k;
      const vm chosen = narrow.marked(marks, k);
      if (any_(chosen)) lanes.take(tensor, begin + at, lanes_left(size - at), chosen);
    }
  }
}

GW_INLINE void prefetch_row(const gw_adam_tensor &tensor, int64_t row) {
  for (int64_t at = row * tensor.width; at < (row + 1) * tensor.width; at += LANES) {
    __builtin_prefetch(tensor.gradients + at);
    __builtin_prefetch(tensor.values + at);
    __builtin_prefetch(tensor.first + at);
    __builtin_prefetch(tensor.second + at);
  }
}

inline void adam_rows(const gw_adam_tensor &tensor, const AdamRates &rates, const MarkedRows &rows) {
  constexpr int AHEAD = 10;  // rows whose memory is asked for early
  const AdamLanes lanes(rates);
  if (tensor.width < LANES) return adam_narrow(tensor, lanes, rows);
  for (int i = 0; i < rows.found; i++) {
    if (i + AHEAD < rows.found) prefetch_row(tensor, rows.begin + rows.index[i + AHEAD]);
    const int64_t first = (rows.begin + rows.index[i]) * tensor.width;
    lanes.take_range(tensor, first, first + tensor.width);
  }
}

GW_INLINE uint32_t nonzero_lanes(vf x) { return bits_((x >= vf(0.0f)) & (x <= vf(0.0f))) ^ 0xffffu; }  // NaN is not zero

inline void mark_narrow(const float *values, int64_t rows, int32_t width, float *marks) {
  const NarrowRows narrow(width);
  for (int64_t group = 0; group < rows; group += LANES)
    for (int k = 0; k < width && group * width + LANES * k < rows * width; k++) {
      const int64_t at = group * width + LANES * k;
      const uint32_t known = bits_(narrow.marked(load_(marks + group), k));
      const uint32_t new_ones = nonzero_lanes(load_first_(values + at, lanes_left(rows * width - at))) & ~known;
      for (uint32_t lanes = new_ones; lanes; lanes &= lanes - 1)
        marks[group + narrow.row[LANES * k + __builtin_ctz(lanes)]] = 1.0f;
    }
}

// Marks the rows of values [rows, width] that are not all zeros with 1; marks [ROW_CHUNK].
inline void mark_nonzero(const float *values, int64_t rows, int32_t width, float *marks) {
  if (width < LANES) return mark_narrow(values, rows, width, marks);
  for (int64_t row = 0; row < rows; row++) {
    if (marks[row] > 0.0f) continue;
    const float *from = values + row * width;
    uint32_t lanes = nonzero_lanes(load_(from + width - LANES));
    for (int32_t i = 0; i + LANES < width; i += LANES) lanes |= nonzero_lanes(load_(from + i));
    if (lanes) marks[row] = 1.0f;
  }
}

inline const TrainKernels train_table = {loss_tile, adam, adam_rows, mark_nonzero, yuv_rows};

}  // namespace GW_ISA
}  // namespace gw
