// L1 and SSIM of two pictures with the gradient, in one pass over tiles; nothing of the size of a picture is stored.
//
// With d = x - y and s = x + y, SSIM = (1 - a)(1 - b), a = mean_d^2 / (luminance term), b = var_d / (contrast term): equal
// pictures give exactly 1. s is kept less 1, which saves its variance digits; `mass`, the window's share inside the
// picture, puts that back at the border, beyond which pictures are zero.
#pragma once
#include "simd_part.h"
#include "train.h"

namespace gw {
namespace GW_ISA {

constexpr float C1 = 0.01f * 0.01f, C2 = 0.03f * 0.03f;
// The Gaussian of sigma 1.5 pixels at 0..5 pixels from its middle; eleven of them add up to one.
constexpr float TAPS[REACH + 1] = {0.266011725f, 0.213005538f, 0.10936069f, 0.0360007721f, 0.00759875814f, 0.00102838008f};
#if defined(GW_USE_AVX512)
constexpr int DOWN = BLUR_ROWS;
#else
constexpr int DOWN = 1;  // rows whose sums fit the registers
#endif

struct TilePlace {
  int left, right, top, bottom;  // pixels
  int vectors_end;               // floats of a row in use
  const float *image, *truth, *mask;
  float *gradient;
};

inline TilePlace place_tile(const LossJob &job, int tile) {
  const int tiles = job.tiles_x * job.tiles_y, picture = tile / tiles, x = tile % job.tiles_x, y = tile % tiles / job.tiles_x;
  TilePlace p;
  p.left = static_cast<int>(static_cast<int64_t>(job.width) * x / job.tiles_x);
  p.right = static_cast<int>(static_cast<int64_t>(job.width) * (x + 1) / job.tiles_x);
  p.top = static_cast<int>(static_cast<int64_t>(job.height) * y / job.tiles_y);
  p.bottom = static_cast<int>(static_cast<int64_t>(job.height) * (y + 1) / job.tiles_y);
  p.vectors_end = 2 * MARGIN + 3 * (p.right - p.left);
  const size_t pixels = static_cast<size_t>(job.height) * job.width * picture;
  p.image = job.image + 3 * pixels;
  p.truth = job.truth + 3 * pixels;
  p.mask = job.mask ? job.mask + pixels : nullptr;
  p.gradient = job.gradient ? job.gradient + 3 * pixels : nullptr;
  return p;
}

// The window's share inside 0..size-1 around `middle`, exactly 1 away from the border.
inline float window_mass(int middle, int size) {
  if (middle >= REACH && middle + REACH < size) return 1.0f;
  float mass = 0.0f;
  for (int k = -REACH; k <= REACH; k++)
    if (middle + k >= 0 && middle + k < size) mass += TAPS[k < 0 ? -k : k];
  return mass;
}

// The rows that hold for the whole tile.
inline void begin_tile(LossScratch &s, const LossJob &job, const TilePlace &p) {
  for (int i = 0; i < p.vectors_end; i++) {
    const int pixel = p.left + (i + 2 * MARGIN) / 3 - MARGIN;  // (i - MARGIN) / 3 from the left, rounded down
    s.mass[i] = window_mass(pixel, job.width);
    s.inside[i] = pixel >= 0 && pixel < job.width ? 1.0f : 0.0f;
    s.core[i] = pixel >= p.left && pixel < p.right ? 1.0f : 0.0f;
  }
}

GW_INLINE void pad_row(float *row, int begin, int end, int size) {
  for (int i = 0; i < begin; i++) row[i] = 0.0f;
  for (int i = end; i < size; i++) row[i] = 0.0f;
}

// Difference, sum and weight of row y. What the mask leaves out shows the truth.
inline void load_row(const LossJob &job, const TilePlace &p, LossScratch &s, int y) {
  const int slot = y % RING, first = p.left > 2 * REACH ? p.left - 2 * REACH : 0;
  const int last = p.right + 2 * REACH < job.width ? p.right + 2 * REACH : job.width;
  const int begin = MARGIN + 3 * (first - p.left), count = 3 * (last - first);
  const size_t at = 3 * (static_cast<size_t>(y) * job.width + first);
  float *difference = s.difference[slot] + begin, *sum = s.sum[slot] + begin, *weight = s.weight[slot] + begin;
  pad_row(s.difference[slot], begin, begin + count, p.vectors_end);
  pad_row(s.sum[slot], begin, begin + count, p.vectors_end);
  if (p.mask) {
    pad_row(s.weight[slot], begin, begin + count, p.vectors_end);
    for (int i = 0; i < last - first; i++) weight[3 * i] = weight[3 * i + 1] = weight[3 * i + 2] = p.mask[at / 3 + i];
  }
  for (int i = 0; i < count; i += LANES) {
    const int lanes = lanes_left(count - i);
    const vf truth = load_first_(p.truth + at + i, lanes);
    vf d = load_first_(p.image + at + i, lanes) - truth;
    if (p.mask) {
      const vf w = load_first_(weight + i, lanes);
      d = zero_unless_(w > vf(0.0f), w * d);
    }
    store_first_(difference + i, lanes, d);
    store_first_(sum + i, lanes, fma_(vf(2.0f), truth - vf(0.5f), d));
  }
}

GW_INLINE const float *weight_row(const TilePlace &p, const LossScratch &s, int y) {
  return p.mask ? s.weight[y % RING] : s.inside;
}
GW_INLINE const float *ring_row(const LossScratch &s, const float (*ring)[LOSS_ROW], int y, int height) {
  return y < 0 || y >= height ? s.zero : ring[y % RING];
}

// Blurs `count` quantities of rows y..y+BLUR_ROWS-1 downwards; make(r, i, out) gives those of row y - REACH + r.
template <int COUNT, class Make>
GW_INLINE void blur_down(LossScratch &s, int begin, int end, const Make &make) {
  for (int o = 0; o < BLUR_ROWS; o += DOWN)
    for (int i = begin; i < end; i += LANES) {
      vf total[DOWN][COUNT];
#pragma GCC unroll 16
      for (int r = 0; r < DOWN + 2 * REACH; r++) {
        vf value[COUNT];
        make(o + r, i, value);
#pragma GCC unroll 4
        for (int out = 0; out < DOWN; out++) {
          const int tap = r - out - REACH;
          if (tap < -REACH || tap > REACH) continue;
          const vf by(TAPS[tap < 0 ? -tap : tap]);
#pragma GCC unroll 4
          for (int q = 0; q < COUNT; q++)
            total[out][q] = tap == -REACH ? by * value[q] : fma_(by, value[q], total[out][q]);
        }
      }
#pragma GCC unroll 4
      for (int out = 0; out < DOWN; out++)
#pragma GCC unroll 4
        for (int q = 0; q < COUNT; q++) store_(s.down[q][o + out] + i, total[out][q]);
    }
}

GW_INLINE vf blur_across(const float *p) {
  vf total = vf(TAPS[0]) * load_(p);
#pragma GCC unroll 5
  for (int k = 1; k <= REACH; k++) total = fma_(vf(TAPS[k]), load_(p - 3 * k) + load_(p + 3 * k), total);
  return total;
}

// 1 - SSIM of row y, summed over the tile's own pixels, and its derivatives by the three blurred fields.
template <bool GRADIENT>
inline float compare_row(const TilePlace &p, LossScratch &s, int y, int height, int blurred, bool counts) {
  const int slot = y % RING;
  const float *weights = weight_row(p, s, y);
  const float *down[4] = {s.down[0][blurred], s.down[1][blurred], s.down[2][blurred], s.down[3][blurred]};
  const vf mass_y(window_mass(y, height)), two(2.0f), half(0.5f);
  vf total(0.0f);
  for (int i = LANES; i < p.vectors_end - LANES; i += LANES) {
    const vf mass = mass_y * load_(s.mass + i), lack = vf(1.0f) - mass, weight = load_(weights + i);
    const vf mean_d = blur_across(down[0] + i), low = blur_across(down[1] + i), mean_s = low + mass;
    // Zero where rounding makes them negative; NaN stays.
    const vf var_d = max_(vf(0.0f), fnma_(mean_d, mean_d, blur_across(down[2] + i)));
    const vf var_s = max_(vf(0.0f), fma_(lack, fma_(two, low, mass), fnma_(low, low, blur_across(down[3] + i))));
    const vf per1 = reciprocal_(fma_(half, fma_(mean_s, mean_s, mean_d * mean_d), vf(C1)));
    const vf per2 = reciprocal_(fma_(half, var_s + var_d, vf(C2)));
    const vf a = mean_d * mean_d * per1, b = var_d * per2, rest_a = vf(1.0f) - a, rest_b = vf(1.0f) - b;
    if (counts) total += zero_unless_(load_(s.core + i) > vf(0.0f), weight * fma_(rest_a, b, a));
    if (!GRADIENT) continue;
    const vf scale2 = weight * rest_a * per2, scale1 = weight * rest_b * per1;
    const vf by_square_d = scale2 * fnma_(half, b, vf(1.0f)), by_square_s = vf(-0.5f) * scale2 * b;
    vf by_mean = fma_(scale1, fnma_(a, mean_d + mean_s, two * mean_d), two * by_square_s * (lack - low));
    by_mean = fnma_(two * mean_d, by_square_d, by_mean);
    store_(s.by_mean[slot] + i, by_mean);
    store_(s.by_difference[slot] + i, by_square_d);
    store_(s.by_sum[slot] + i, by_square_s);
  }
  return sum_(total);
}

template <bool GRADIENT>
inline double compare_rows(const LossJob &job, const TilePlace &p, LossScratch &s, int y, int end) {
  const float *difference[BLUR_ROWS + 2 * REACH], *sum[BLUR_ROWS + 2 * REACH];
  for (int r = 0; r < BLUR_ROWS + 2 * REACH; r++) {
    difference[r] = ring_row(s, s.difference, y - REACH + r, job.height);
    sum[r] = ring_row(s, s.sum, y - REACH + r, job.height);
  }
  blur_down<4>(s, 0, p.vectors_end, [&](int r, int i, vf *out) {
    out[0] = load_(difference[r] + i);
    out[1] = load_(sum[r] + i);
    out[2] = out[0] * out[0];
    out[3] = out[1] * out[1];
  });
  double total = 0.0;
  for (int o = 0; o < BLUR_ROWS && y + o < end; o++)
    total += compare_row<GRADIENT>(p, s, y + o, job.height, o, y + o >= p.top && y + o < p.bottom);
  return total;
}

inline void gradient_row(const LossJob &job, const TilePlace &p, LossScratch &s, int y, int blurred) {
  const int slot = y % RING, count = 3 * (p.right - p.left);
  const float *weights = weight_row(p, s, y);
  float *out = p.gradient + 3 * (static_cast<size_t>(y) * job.width + p.left);
  const vf l1(job.l1_scale), ssim(job.ssim_scale), two(2.0f);
  for (int i = 0; i < count; i += LANES) {
    const int at = MARGIN + i;
    const vf d = load_(s.difference[slot] + at), sum = load_(s.sum[slot] + at), weight = load_(weights + at);
    const vf squares = fma_(d, blur_across(s.down[1][blurred] + at), sum * blur_across(s.down[2][blurred] + at));
    const vf by_ssim = fma_(two, squares, blur_across(s.down[0][blurred] + at));
    const vf sign = select_(d > vf(0.0f), l1, zero_unless_(d < vf(0.0f), -l1));
    const vf gradient = fma_(ssim, by_ssim, sign);
    store_first_(out + i, lanes_left(count - i), zero_unless_(weight > vf(0.0f), weight * gradient));
  }
}

inline void gradient_rows(const LossJob &job, const TilePlace &p, LossScratch &s, int y) {
  const float *fields[3][BLUR_ROWS + 2 * REACH];
  for (int r = 0; r < BLUR_ROWS + 2 * REACH; r++) {
    fields[0][r] = ring_row(s, s.by_mean, y - REACH + r, job.height);
    fields[1][r] = ring_row(s, s.by_difference, y - REACH + r, job.height);
    fields[2][r] = ring_row(s, s.by_sum, y - REACH + r, job.height);
  }
  blur_down<3>(s, LANES, p.vectors_end - LANES, [&](int r, int i, vf *out) {
    for (int q = 0; q < 3; q++) out[q] = load_(fields[q][r] + i);
  });
  for (int o = 0; o < BLUR_ROWS && y + o < p.bottom; o++) gradient_row(job, p, s, y + o, o);
}

inline double l1_row(const TilePlace &p, const LossScratch &s, int y) {
  vf total(0.0f);
  for (int i = MARGIN; i < p.vectors_end - MARGIN; i += LANES)
    total = fma_(load_(s.core + i), abs_(load_(s.difference[y % RING] + i)), total);
  return sum_(total);
}

// Rows are loaded, compared five rows later, and get their gradient another five later, all within one ring.
inline LossSums loss_tile(const LossJob &job, LossScratch &s, int tile) {
  const TilePlace p = place_tile(job, tile);
  begin_tile(s, job, p);
  const int begin = p.top > REACH ? p.top - REACH : 0, end = p.bottom + REACH < job.height ? p.bottom + REACH : job.height;
  LossSums sums = {0.0, 0.0};
  int loaded = begin > REACH ? begin - REACH : 0, drawn = p.top;
  for (int y = begin; y < end; y += BLUR_ROWS) {
    for (; loaded < job.height && loaded < y + BLUR_ROWS + REACH; loaded++) {
      load_row(job, p, s, loaded);
      if (loaded >= p.top && loaded < p.bottom) sums.l1 += l1_row(p, s, loaded);
    }
    sums.dissimilarity += p.gradient ? compare_rows<true>(job, p, s, y, end) : compare_rows<false>(job, p, s, y, end);
    const int ready = y + BLUR_ROWS < end ? y + BLUR_ROWS : end;
    for (; p.gradient && drawn < p.bottom && (ready == end || drawn + BLUR_ROWS + REACH <= ready); drawn += BLUR_ROWS)
      gradient_rows(job, p, s, drawn);
  }
  return sums;
}

}  // namespace GW_ISA
}  // namespace gw
