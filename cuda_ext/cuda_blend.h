// Blending and its backward pass: one block per tile, one thread per pixel, a warp for 8 x 4 of them.
#pragma once
#include "cuda_block.h"
#include "splat_vjp.h"

namespace gw {
namespace cuda {

// Where a block's tile lies: its view, its first pixel, and its part of the list.
struct Tile {
  int view, left, top;
  Range range;
};
GW_DEVICE Tile tile_of(const Call &call, int64_t index) {
  const uint32_t tiles = static_cast<uint32_t>(call.tile_count), at = static_cast<uint32_t>(index) % tiles;
  return {static_cast<int>(static_cast<uint32_t>(index) / tiles), static_cast<int>(at % call.tiles_x) * TILE,
          static_cast<int>(at / call.tiles_x) * TILE, call.ranges[index]};
}
GW_DEVICE int column_of(int t) { return t / WARP % 2 * 8 + t % 8; }
GW_DEVICE int row_of(int t) { return t / WARP / 2 * 4 + t % WARP / 8; }

// Whether the splat's ellipse reaches a pixel centre of the warp's 8 x 4 (exact, up to EXTENT_SLACK).
GW_DEVICE bool reaches_warp(const Tile &tile, int warp, const Splat &s) {
  const float x = tile.left + warp % 2 * 8 + 0.5f - s.x, y = tile.top + warp / 2 * 4 + 0.5f - s.y;
  const float least = least_in_box(s.ux, s.uy, s.vy, s.along_x, s.along_y, x, x + 7.0f, y, y + 3.0f);
  return least <= s.peak + (EXTENT_SLACK - MIN_LOG2_ALPHA);
}

// log2 of alpha at (dx, dy) from the splat's centre: log2_alpha of splat.h.
GW_DEVICE float power_at(const Splat &s, float dx, float dy) {
  const float u = fma_(s.ux, dx, s.uy * dy), v = s.vy * dy;
  return fnma_(u, u, fnma_(v, v, s.peak));
}

enum Want { WANT_RGB = 1, WANT_DEPTH = 2, WANT_FLOW = 4, WANT_LINK = 8 };

// A pixel while it is blended; `place` is its index in the pictures, or -1 outside them.
struct Pixel {
  float x, y, running, r, g, b, z, flow_x, flow_y, best;
  int32_t link;
  bool alive;
  int64_t place;
};
GW_DEVICE Pixel begin_pixel(const Call &call, const Tile &tile, int t) {
  Pixel p = {};
  const int x = tile.left + column_of(t), y = tile.top + row_of(t);
  p.alive = x < call.views.width && y < call.views.height;
  p.place = p.alive ? (static_cast<int64_t>(tile.view) * call.views.height + y) * call.views.width + x : -1;
  p.x = x + 0.5f, p.y = y + 0.5f, p.running = 1.0f, p.link = -1;
  return p;
}

template <int WANT>
GW_DEVICE void blend(const Splat &s, Pixel &p) {
  const float power = power_at(s, p.x - s.x, p.y - s.y);
  if (!(power >= MIN_LOG2_ALPHA)) return;
  const float alpha = min_(exp2_pixel(power), MAX_ALPHA), weight = alpha * p.running, after = p.running - weight;
  if (!(after > MIN_TRANSMITTANCE)) {
    p.alive = false;
    return;
  }
  p.running = after;
  if (WANT & WANT_RGB) {
    p.r = fma_(weight, s.r, p.r);
    p.g = fma_(weight, s.g, p.g);
    p.b = fma_(weight, s.b, p.b);
  }
  if (WANT & WANT_DEPTH) p.z = fma_(weight, s.z, p.z);
  if (WANT & WANT_FLOW) {
    p.flow_x = fma_(weight, s.flow_x, p.flow_x);
    p.flow_y = fma_(weight, s.flow_y, p.flow_y);
  }
  if ((WANT & WANT_LINK) && weight > p.best) {
    p.best = weight;
    p.link = s.link;
  }
}

template <int WANT>
GW_DEVICE void write_pixel(const Call &call, const Pixel &p) {
  if (p.place < 0) return;
  const float alpha = 1.0f - p.running, scale = alpha > 0.0f ? 1.0f / alpha : 0.0f;
  const gw_images &images = call.images;
  if (images.alpha) images.alpha[p.place] = alpha;
  if (WANT & WANT_RGB) {
    images.rgb[3 * p.place] = fma_(p.running, call.views.background[0], p.r);
    images.rgb[3 * p.place + 1] = fma_(p.running, call.views.background[1], p.g);
    images.rgb[3 * p.place + 2] = fma_(p.running, call.views.background[2], p.b);
  }
  if (WANT & WANT_DEPTH) images.depth[p.place] = p.z * scale;
  if (WANT & WANT_FLOW) {
    images.flow[2 * p.place] = p.flow_x * scale;
    images.flow[2 * p.place + 1] = p.flow_y * scale;
  }
  if (WANT & WANT_LINK) images.link_id[p.place] = p.link;
}

template <int WANT>
struct BlendTile {
  Call call;
  static constexpr int RESIDENT = WANT & (WANT_FLOW | WANT_LINK) ? 6 : FULL;  // blocks that a multiprocessor is to hold at once
  struct Shared {
    Splat splats[BLOCK];
  };
  GW_DEVICE void run(const Block &block, Shared &shared, int64_t index) const {
    const Tile tile = tile_of(call, index);
    PerThread<Pixel> pixels;
    block.each([&](int t) { pixels[t] = begin_pixel(call, tile, t); });
    for (uint32_t at = tile.range.first; at < tile.range.last; at += BLOCK) {
      if (!block.any([&](int t) { return pixels[t].alive; })) break;
      const int count = static_cast<int>(tile.range.last - at < BLOCK ? tile.range.last - at : BLOCK);
      block.each([&](int t) {
        if (t < count) shared.splats[t] = call.splats[call.list[at + t]];
      });
      block.warps([&](const Warp &warp) {
        for (int base = 0; base < count; base += WARP) {
          const uint32_t reached = warp.ballot([&](int lane) {
            return base + lane < count && reaches_warp(tile, warp.index, shared.splats[base + lane]);
          });
          warp.each([&](int lane) {
            Pixel &p = pixels[warp.index * WARP + lane];
            for (uint32_t left = reached; left && p.alive; left &= left - 1)
              blend<WANT>(shared.splats[base + first_bit(left)], p);
          });
        }
      });
    }
    block.each([&](int t) { write_pixel<WANT>(call, pixels[t]); });
  }
};

// A pixel on its way back. With w the weights and D_j = dL/dw_j, dL/dalpha_i = T_i D_i - (sum_{j>i} w_j D_j) /
// (1 - alpha_i). The sum over all j follows from the finished pixel, so it is walked front to back like the forward
// pass and nothing is stored but the pictures.
struct PixelBack {
  float x, y, running, suffix, constant, channel[6];  // dL/d(sum of r, g, b, z, flow x, flow y)
  bool alive;
};
GW_DEVICE PixelBack begin_pixel_back(const Call &call, const Tile &tile, int t) {
  const gw_images &pictures = call.images, &by = call.image_gradients;
  const Pixel here = begin_pixel(call, tile, t);
  PixelBack p = {here.x, here.y, 1.0f, 0.0f, 0.0f, {}, here.alive};
  const int64_t at = here.place;
  if (at < 0) return p;
  const float alpha = pictures.alpha[at], share = alpha > 0.0f ? 1.0f / alpha : 0.0f;
  if (by.alpha) {
    p.constant = by.alpha[at];
    p.suffix = by.alpha[at] * alpha;
  }
  if (by.rgb)
    for (int c = 0; c < 3; c++) {
      p.channel[c] = by.rgb[3 * at + c];
      p.constant -= p.channel[c] * call.views.background[c];
      p.suffix += p.channel[c] * (pictures.rgb[3 * at + c] - call.views.background[c]);
    }
  if (by.depth) {
    p.channel[3] = by.depth[at] * share;
    p.constant -= p.channel[3] * pictures.depth[at];
  }
  if (by.flow)
    for (int c = 0; c < 2; c++) {
      p.channel[4 + c] = by.flow[2 * at + c] * share;
      p.constant -= p.channel[4 + c] * pictures.flow[2 * at + c];
    }
  return p;
}

// One splat in one pixel: its weight, and dL/d(log2 alpha).
struct PairBack {
  float by_power, weight;
};
template <bool GEOMETRY>
GW_DEVICE PairBack blend_back(const Splat &s, PixelBack &p) {
  const float power = power_at(s, p.x - s.x, p.y - s.y);
  if (!p.alive || !(power >= MIN_LOG2_ALPHA)) return {0.0f, 0.0f};
  const float full = exp2_pixel(power), alpha = min_(full, MAX_ALPHA), weight = alpha * p.running;
  const float after = p.running - weight;
  if (!(after > MIN_TRANSMITTANCE)) {
    p.alive = false;
    return {0.0f, 0.0f};
  }
  float d = fma_(p.channel[0], s.r, fma_(p.channel[1], s.g, fma_(p.channel[2], s.b, p.constant)));
  if (GEOMETRY) d = fma_(p.channel[3], s.z, fma_(p.channel[4], s.flow_x, fma_(p.channel[5], s.flow_y, d)));
  p.suffix = fnma_(weight, d, p.suffix);
  const float by_alpha = p.running * d - divide_pixel(p.suffix, 1.0f - alpha);
  p.running = after;
  return {full < MAX_ALPHA ? alpha * by_alpha * LN_2 : 0.0f, weight};
}

// The sums over a tile's pixels of by_power times 1, X, Y, XX, XY, YY (X, Y from the tile's centre) and of weight times
// dL/d(channels) are products of a matrix of pairs with one of pixels. A warp makes both for a few splats in shared
// memory and then sums: a lane takes three of the twelve columns of one splat. No shuffles, no atomics, one order.
template <bool GEOMETRY>
struct BlendTileBack {
  Call call;
  static constexpr int RESIDENT = 4;
  static constexpr int BATCH = 32;  // splats between two barriers
  static constexpr int GROUP = 8;   // splats that a warp sums at a time
  struct Shared {
    alignas(16) float basis[BLOCK][4][4];      // per pixel: 1 X Y -, XX XY YY -, r g b -, z flow -
    float pairs[WARPS][2 * GROUP][WARP + 1];   // by_power of each splat and lane, then weight
    float sums[WARPS][BATCH][12];
    Splat splats[BATCH];
    uint32_t reached[WARPS];                   // which splats of the batch
    int places[WARPS][GROUP];                  // which splats of the batch are in `pairs`
  };

  GW_DEVICE void run(const Block &block, Shared &shared, int64_t index) const {
    const Tile tile = tile_of(call, index);
    if (tile.range.first >= tile.range.last) return;
    PerThread<PixelBack> pixels;
    block.each([&](int t) {
      pixels[t] = begin_pixel_back(call, tile, t);
      fill_basis(pixels[t], t, shared.basis[t]);
    });
    for (uint32_t at = tile.range.first; at < tile.range.last; at += BATCH) {
      if (!block.any([&](int t) { return pixels[t].alive; })) break;
      const int count = static_cast<int>(tile.range.last - at < BATCH ? tile.range.last - at : BATCH);
      block.each([&](int t) {
        if (t < count) shared.splats[t] = call.splats[call.list[at + t]];
      });
      block.warps([&](const Warp &warp) { sum_batch(warp, tile, count, pixels, shared); });
      block.each([&](int t) { join_warps(shared, t, count); });
      block.each([&](int t) {
        if (t < count) add_splat(tile, at + t, shared.splats[t], shared.sums[0][t]);
      });
    }
  }

  static GW_DEVICE void fill_basis(const PixelBack &p, int t, float basis[4][4]) {
    const float x = column_of(t) + 0.5f - TILE / 2, y = row_of(t) + 0.5f - TILE / 2;
    const float values[4][4] = {{1.0f, x, y, 0.0f}, {x * x, x * y, y * y, 0.0f},
                                {p.channel[0], p.channel[1], p.channel[2], 0.0f},
                                {p.channel[3], p.channel[4], p.channel[5], 0.0f}};
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) basis[i][j] = values[i][j];
  }

  GW_DEVICE void sum_batch(const Warp &warp, const Tile &tile, int count, PerThread<PixelBack> &pixels,
                           Shared &shared) const {
    const int w = warp.index;
    const uint32_t reached =
        warp.ballot([&](int lane) { return lane < count && reaches_warp(tile, w, shared.splats[lane]); });
    for (uint32_t left = reached; left;) {
      uint32_t rest = left;
      warp.each([&](int lane) {
        rest = left;
        for (int j = 0; j < GROUP && rest; j++, rest &= rest - 1) {
          const int place = first_bit(rest);
          const PairBack pair = blend_back<GEOMETRY>(shared.splats[place], pixels[w * WARP + lane]);
          shared.pairs[w][j][lane] = pair.by_power;
          shared.pairs[w][GROUP + j][lane] = pair.weight;
          if (lane == 0) shared.places[w][j] = place;
        }
      });
      const uint32_t now = left ^ rest;
      warp.each([&](int lane) {
        const int j = lane % GROUP, columns = lane / GROUP;
        if (j < bit_count(now)) sum_columns(shared, w, j, columns);
      });
      left = rest;
    }
    warp.each([&](int lane) {
      if (lane == 0) shared.reached[w] = reached;
    });
  }

  static GW_DEVICE void sum_columns(Shared &shared, int w, int j, int columns) {
    const float *pairs = shared.pairs[w][columns < 2 ? j : GROUP + j];
    float a = 0.0f, b = 0.0f, c = 0.0f;
    GW_UNROLL for (int lane = 0; lane < WARP; lane++) {
      const float pair = pairs[lane], *basis = shared.basis[w * WARP + lane][columns];
      a = fma_(pair, basis[0], a);
      b = fma_(pair, basis[1], b);
      c = fma_(pair, basis[2], c);
    }
    float *sums = shared.sums[w][shared.places[w][j]] + 3 * columns;
    sums[0] = a, sums[1] = b, sums[2] = c;
  }

  // Adds up what the warps that a splat reaches found for it, into the first warp's place.
  static GW_DEVICE void join_warps(Shared &shared, int t, int count) {
    for (int item = t; item < 12 * count; item += BLOCK) {
      const int place = item / 12, column = item % 12;
      float total = 0.0f;
      for (int w = 0; w < WARPS; w++)
        if (shared.reached[w] >> place & 1) total += shared.sums[w][place][column];
      shared.sums[0][place][column] = total;
    }
  }

  GW_DEVICE void add_splat(const Tile &tile, uint32_t entry, const Splat &s, const float g[12]) const {
    const float dx = tile.left + TILE / 2 - s.x, dy = tile.top + TILE / 2 - s.y;
    const EllipseSums<float> e =
        ellipse_sums(s.ux, s.uy, s.vy, fma_(s.ux, dx, s.uy * dy), s.vy * dy, g[0], g[1], g[2], g[3], g[4], g[5]);
    const SplatRow sums = {{e.one, e.u, e.v, e.uu, e.uv, e.vv, g[6], g[7], g[8], g[9], g[10], g[11]}};
    if (call.slotted) {
      call.rows[call.slots[entry]] = sums;
      return;
    }
    float *row = call.rows[call.list[entry]].sum;
    for (int c = 0; c < 12; c++)
      if (sums.sum[c] != 0.0f) add_atomically(row + c, sums.sum[c]);
  }
};

}  // namespace cuda
}  // namespace gw
