// Rendered pictures to planar YUV 4:2:0 (I420), BT.709 in limited range; a chroma sample is the mean of its four pixels.
#pragma once
#include "simd_part.h"
#include "train.h"

namespace gw {
namespace GW_ISA {

constexpr int YUV_STEP = 2 * LANES;  // pixels converted at a time
constexpr float LUMA_R = 0.2126f, LUMA_G = 0.7152f, LUMA_B = 0.0722f;

struct Colours {
  vf r, g, b;
};

GW_INLINE vf clamp_(vf x) { return min_(max_(x, vf(0.0f)), vf(1.0f)); }  // NaN becomes 0
GW_INLINE Colours load_colours(const float *rgb) {
  vf c[3];
  split3_(rgb, c);
  return {clamp_(c[0]), clamp_(c[1]), clamp_(c[2])};
}
GW_INLINE vf luma(const Colours &c) { return fma_(vf(LUMA_R), c.r, fma_(vf(LUMA_G), c.g, vf(LUMA_B) * c.b)); }

// 32 pixels of an upper and a lower row: 32 bytes of luma each, 16 of both chromas.
GW_INLINE void convert_step(const float *upper, const float *lower, uint8_t *luma_upper, uint8_t *luma_lower, uint8_t *u,
                            uint8_t *v) {
  alignas(64) float sums[3][YUV_STEP];
  for (int half = 0; half < 2; half++) {
    const Colours a = load_colours(upper + 3 * LANES * half), b = load_colours(lower + 3 * LANES * half);
    store_bytes_(luma_upper + LANES * half, fma_(vf(219.0f), luma(a), vf(16.5f)));
    store_bytes_(luma_lower + LANES * half, fma_(vf(219.0f), luma(b), vf(16.5f)));
    store_(sums[0] + LANES * half, a.r + b.r);
    store_(sums[1] + LANES * half, a.g + b.g);
    store_(sums[2] + LANES * half, a.b + b.b);
  }
  const Colours four = {add_pairs_(sums[0]), add_pairs_(sums[1]), add_pairs_(sums[2])};
  const vf y = luma(four);
  store_bytes_(u, fma_(vf(224.0f / 4 / (2 * (1 - LUMA_B))), four.b - y, vf(128.5f)));
  store_bytes_(v, fma_(vf(224.0f / 4 / (2 * (1 - LUMA_R))), four.r - y, vf(128.5f)));
}

// Rows 2 pair and 2 pair + 1 of a picture; odd sizes grow by their last row or column.
inline void yuv_rows(const float *rgb, int height, int width, uint8_t *planes, int pair) {
  const size_t columns = (static_cast<size_t>(width) + 1) / 2 * 2, rows = (static_cast<size_t>(height) + 1) / 2 * 2;
  const size_t row = static_cast<size_t>(pair) * 2, below = row + 1 < static_cast<size_t>(height) ? row + 1 : row;
  const float *upper = rgb + 3 * row * width, *lower = rgb + 3 * below * width;
  uint8_t *y = planes + row * columns, *u = planes + rows * columns + pair * (columns / 2), *v = u + rows * columns / 4;
  int at = 0;
  for (; at + YUV_STEP <= width; at += YUV_STEP)
    convert_step(upper + 3 * at, lower + 3 * at, y + at, y + columns + at, u + at / 2, v + at / 2);
  if (at == width) return;
  float last[2][3 * YUV_STEP];
  uint8_t made[3 * YUV_STEP];
  const size_t rest = columns - at;
  for (int i = 0; i < YUV_STEP; i++)
    for (int k = 0; k < 3; k++) {
      const size_t from = 3 * static_cast<size_t>(at + i < width ? at + i : width - 1) + k;
      last[0][3 * i + k] = upper[from];
      last[1][3 * i + k] = lower[from];
    }
  convert_step(last[0], last[1], made, made + YUV_STEP, made + 2 * YUV_STEP, made + 2 * YUV_STEP + LANES);
  memcpy(y + at, made, rest);
  memcpy(y + columns + at, made + YUV_STEP, rest);
  memcpy(u + at / 2, made + 2 * YUV_STEP, rest / 2);
  memcpy(v + at / 2, made + 2 * YUV_STEP + LANES, rest / 2);
}

}  // namespace GW_ISA
}  // namespace gw
