// What the loss, the optimiser and the video conversion hand to the kernels of each instruction set.
#pragma once
#include <cstddef>
#include <cstdint>

#include "gworld_native.h"

namespace gw {

constexpr int REACH = 5;        // pixels from the middle of the SSIM window to its border
constexpr int LOSS_WIDTH = 256, LOSS_HEIGHT = 160;  // most pixels of a loss tile
constexpr int MARGIN = 32;      // floats left and right of a tile's row; two windows reach 6 * REACH
constexpr int LOSS_ROW = 3 * LOSS_WIDTH + 2 * MARGIN + 32;  // floats, with slack for whole vectors
constexpr int RING = 20;        // rows kept while a tile is worked from top to bottom
constexpr int BLUR_ROWS = 4;    // most rows blurred at once

// One loss over pictures [count, height, width, 3]; tiles are numbered picture by picture, row by row.
struct LossJob {
  const float *image, *truth, *mask;  // mask [count, height, width] or null
  float *gradient;                    // like image, or null
  int height, width, tiles_x, tiles_y;
  float l1_scale, ssim_scale;         // what a pixel's |difference| and 1 - SSIM add to the loss
};

struct LossSums {
  double l1, dissimilarity;
};

// One thread's rows; row y of a ring lies at y % RING.
struct alignas(64) LossScratch {
  float difference[RING][LOSS_ROW], sum[RING][LOSS_ROW], weight[RING][LOSS_ROW];
  float by_mean[RING][LOSS_ROW], by_difference[RING][LOSS_ROW], by_sum[RING][LOSS_ROW];
  float down[4][BLUR_ROWS][LOSS_ROW];  // blurred downwards
  float mass[LOSS_ROW], inside[LOSS_ROW], core[LOSS_ROW], zero[LOSS_ROW];
};

struct AdamRates {
  float beta1, rest1, beta2, rest2, eps, second_scale, step;  // rest = 1 - beta; second_scale and step correct the bias
};

constexpr int ROW_CHUNK = 512;  // rows that a sparse step handles as one task

struct MarkedRows {
  int64_t begin;         // first row of the chunk
  int count, found;      // rows of the chunk, and those marked
  const float *marks;    // [ROW_CHUNK] 1 or 0
  const int32_t *index;  // [found] from `begin`
};

struct TrainKernels {
  LossSums (*loss_tile)(const LossJob &, LossScratch &, int tile);
  void (*adam)(const gw_adam_tensor &, const AdamRates &, int64_t begin, int64_t end);  // floats
  void (*adam_rows)(const gw_adam_tensor &, const AdamRates &, const MarkedRows &);
  void (*mark_nonzero)(const float *values, int64_t rows, int32_t width, float *marks);
  void (*yuv_rows)(const float *rgb, int height, int width, uint8_t *planes, int pair);  // two rows of pixels
};
const TrainKernels &train_kernels_portable();
const TrainKernels &train_kernels_avx2();
const TrainKernels &train_kernels_avx512();

}  // namespace gw
