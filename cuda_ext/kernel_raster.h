// Blending: one tile of one view, front to back.
#pragma once
#include "frame.h"
#include "simd.h"
#include "splat.h"

namespace gw {
namespace GW_ISA {

constexpr int BLOCKS = 16;   // of a tile
constexpr int BATCH = 128;   // list entries sorted into blocks at a time

// For each block of a tile, the values (records, or places in the batch) whose ellipse reaches it, nearest first.
struct BlockLists {
  uint32_t values[BLOCKS][BATCH + LANES];
  int count[BLOCKS];
};

// Lane i: pixel centres of block i's corners (a tile's blocks), or pixel i's place in a block.
struct Lattice {
  vf x, y;
};
GW_INLINE Lattice lattice(float step, float left, float top) {
  alignas(64) float x[LANES], y[LANES];
  for (int i = 0; i < LANES; i++) {
    x[i] = left + step * static_cast<float>(i & 3);
    y[i] = top + step * static_cast<float>(i >> 2);
  }
  return {load_(x), load_(y)};
}

// Bit b: some pixel centre of block b may see the Gaussian (exact on the ellipse, up to EXTENT_SLACK).
GW_INLINE uint32_t blocks_reached(const Record &g, const Lattice &corner) {
  const vf x0 = corner.x - vf(g.x), y0 = corner.y - vf(g.y), side(BLOCK - 1.0f);
  const vf least = least_in_box(vf(g.ux), vf(g.uy), vf(g.vy), vf(g.along_x), vf(g.along_y), x0, x0 + side, y0, y0 + side);
  return bits_(least <= vf(g.peak + (EXTENT_SLACK - MIN_LOG2_ALPHA)));
}

// Sorts list[0..count-1] (count <= BATCH) into the blocks of `alive`; values[i] stands for entry i.
inline void sort_into_blocks(const Record *records, const uint32_t *list, int count, const uint32_t *values,
                             uint32_t alive, const Lattice &corner, BlockLists &lists) {
  alignas(64) uint16_t masks[BATCH + LANES];
  for (int i = 0; i < count; i++) {
    __builtin_prefetch(records + list[i + 8 < count ? i + 8 : i]);
    masks[i] = static_cast<uint16_t>(blocks_reached(records[list[i]], corner) & alive);
  }
  for (int i = count; i < count + LANES; i++) masks[i] = 0;
  for (int b = 0; b < BLOCKS; b++) lists.count[b] = 0;
  for (int i = 0; i < count; i += LANES) append_to_blocks(masks + i, values + i, alive, lists);
}

// Blocks of the tile with a pixel in the image, and the pixels of a block (bits) that are.
GW_INLINE uint32_t pixels_inside(const ViewSetup &view, int left, int top) {
  uint32_t inside = 0;
  for (int i = 0; i < LANES; i++)
    if (left + (i & 3) < view.width && top + (i >> 2) < view.height) inside |= 1u << i;
  return inside;
}

struct TileState {
  // Running transmittance goes on past the stop: as it never grows, "above the threshold" is the whole alive test and
  // no mask is carried from Gaussian to Gaussian. `kept` is what it was at the stop.
  alignas(64) float running[BLOCKS][LANES], kept[BLOCKS][LANES];
  alignas(64) float r[BLOCKS][LANES], g[BLOCKS][LANES], b[BLOCKS][LANES], z[BLOCKS][LANES];
  alignas(64) float flow_x[BLOCKS][LANES], flow_y[BLOCKS][LANES], best[BLOCKS][LANES], link[BLOCKS][LANES];
};

template <bool RGB, bool DEPTH, bool FLOW, bool LINK>
GW_INLINE uint32_t blend_block(const Record *records, const uint32_t *list, int count, const Lattice &pixel, TileState &s,
                               int block) {
  vf running = load_(s.running[block]), kept = load_(s.kept[block]);
  vf r = load_(s.r[block]), g = load_(s.g[block]), b = load_(s.b[block]), z = load_(s.z[block]);
  vf flow_x = load_(s.flow_x[block]), flow_y = load_(s.flow_y[block]), best = load_(s.best[block]), link = load_(s.link[block]);
  bool alive = true;
  for (int k = 0; k < count; k++) {
    const Record &n = records[list[k]];
    const vf power = log2_alpha(vf(n.peak), vf(n.ux), vf(n.uy), vf(n.vy), pixel.x - vf(n.x), pixel.y - vf(n.y));
    const vf alpha = zero_unless_(power >= vf(MIN_LOG2_ALPHA), min_(exp2_fast(power), vf(MAX_ALPHA)));
    const vf after = fnma_(alpha, running, running);
    const vm lives = after > vf(MIN_TRANSMITTANCE);
    const vf weight = mul_if_(lives, alpha, running);
    kept = select_(lives, after, kept);
    running = after;
    if (RGB) {
      r = fma_(weight, vf(n.r), r);
      g = fma_(weight, vf(n.g), g);
      b = fma_(weight, vf(n.b), b);
    }
    if (DEPTH) z = fma_(weight, vf(n.z), z);
    if (FLOW) {
      flow_x = fma_(weight, vf(n.flow_x), flow_x);
      flow_y = fma_(weight, vf(n.flow_y), flow_y);
    }
    if (LINK) {
      float bits;
      memcpy(&bits, &n.link, sizeof bits);
      link = select_(weight > best, vf(bits), link);
      best = max_(weight, best);
    }
    if ((k & 7) == 7 && !any_(lives)) {
      alive = false;
      break;
    }
  }
  store_(s.running[block], running);
  store_(s.kept[block], kept);
  if (RGB) store_(s.r[block], r), store_(s.g[block], g), store_(s.b[block], b);
  if (DEPTH) store_(s.z[block], z);
  if (FLOW) store_(s.flow_x[block], flow_x), store_(s.flow_y[block], flow_y);
  if (LINK) store_(s.best[block], best), store_(s.link[block], link);
  return alive ? 1u << block : 0;
}

GW_INLINE void clear_tile(const ViewSetup &view, int left, int top, TileState &s, uint32_t &alive) {
  const int32_t nobody = -1;
  float nobody_bits;
  memcpy(&nobody_bits, &nobody, sizeof nobody);
  alive = 0;
  for (int b = 0; b < BLOCKS; b++) {
    const uint32_t inside = pixels_inside(view, left + BLOCK * (b & 3), top + BLOCK * (b >> 2));
    if (inside) alive |= 1u << b;
    const vf one = zero_unless_(mask_from_bits_(inside), vf(1.0f));
    store_(s.running[b], one);
    store_(s.kept[b], one);
    const vf zero(0.0f);
    store_(s.r[b], zero), store_(s.g[b], zero), store_(s.b[b], zero), store_(s.z[b], zero);
    store_(s.flow_x[b], zero), store_(s.flow_y[b], zero), store_(s.best[b], zero), store_(s.link[b], vf(nobody_bits));
  }
}

// Copies up to 4 pixels of `channels` interleaved planes.
GW_INLINE void put_row(float *out, int pixels, const float *const *planes, int channels) {
  for (int i = 0; i < pixels; i++)
    for (int c = 0; c < channels; c++) out[i * channels + c] = planes[c][i];
}

inline void write_block(const ViewSetup &view, const ImageView &images, int left, int top, TileState &s, int block) {
  if (left >= view.width || top >= view.height) return;
  const vf kept = load_(s.kept[block]), alpha = vf(1.0f) - kept;
  const vf scale = zero_unless_(alpha > vf(0.0f), vf(1.0f) / max_(alpha, vf(1e-20f)));
  alignas(64) float opacity[LANES];
  store_(opacity, alpha);
  if (images.rgb) {
    store_(s.r[block], fma_(kept, vf(view.background[0]), load_(s.r[block])));
    store_(s.g[block], fma_(kept, vf(view.background[1]), load_(s.g[block])));
    store_(s.b[block], fma_(kept, vf(view.background[2]), load_(s.b[block])));
  }
  store_(s.z[block], load_(s.z[block]) * scale);
  store_(s.flow_x[block], load_(s.flow_x[block]) * scale);
  store_(s.flow_y[block], load_(s.flow_y[block]) * scale);
  const int pixels = view.width - left < BLOCK ? view.width - left : BLOCK;
  for (int row = 0; row < BLOCK && top + row < view.height; row++) {
    const size_t at = static_cast<size_t>(top + row) * view.width + left;
    const int lane = row * BLOCK;
    const float *rgb[3] = {s.r[block] + lane, s.g[block] + lane, s.b[block] + lane};
    const float *flow[2] = {s.flow_x[block] + lane, s.flow_y[block] + lane};
    if (images.rgb) put_row(images.rgb + 3 * at, pixels, rgb, 3);
    if (images.flow) put_row(images.flow + 2 * at, pixels, flow, 2);
    if (images.alpha) memcpy(images.alpha + at, opacity + lane, sizeof(float) * pixels);
    if (images.depth) memcpy(images.depth + at, s.z[block] + lane, sizeof(float) * pixels);
    if (images.link_id) memcpy(images.link_id + at, s.link[block] + lane, sizeof(float) * pixels);
  }
}

template <bool RGB, bool DEPTH, bool FLOW, bool LINK>
void raster_tile(const ViewSetup &view, const Frame &frame, const ImageView &images, int tile) {
  const int left = tile % view.tiles_x * TILE, top = tile / view.tiles_x * TILE;
  const Lattice corner = lattice(BLOCK, left + 0.5f, top + 0.5f), pixel = lattice(1.0f, left + 0.5f, top + 0.5f);
  const Record *records = frame.records.data;
  const uint32_t *list = frame.lists.data + frame.tile_start[tile];
  const uint32_t total = frame.tile_start[tile + 1] - frame.tile_start[tile];
  TileState state;
  BlockLists lists;
  uint32_t alive;
  clear_tile(view, left, top, state, alive);
  for (uint32_t at = 0; at < total && alive; at += BATCH) {
    const int count = total - at < BATCH ? static_cast<int>(total - at) : BATCH;
    sort_into_blocks(records, list + at, count, list + at, alive, corner, lists);
    for (uint32_t todo = alive; todo; todo &= todo - 1) {
      const int block = __builtin_ctz(todo);
      const Lattice here = {pixel.x + vf(BLOCK * (block & 3)), pixel.y + vf(BLOCK * (block >> 2))};
      const uint32_t bit = blend_block<RGB, DEPTH, FLOW, LINK>(records, lists.values[block], lists.count[block], here, state, block);
      if (!bit) alive &= ~(1u << block);
    }
  }
  for (int b = 0; b < BLOCKS; b++) write_block(view, images, left + BLOCK * (b & 3), top + BLOCK * (b >> 2), state, b);
}

template <bool RGB, bool DEPTH>
inline void raster_tile_of(const ViewSetup &view, const Frame &frame, const ImageView &images, int tile) {
  if (images.flow && images.link_id) return raster_tile<RGB, DEPTH, true, true>(view, frame, images, tile);
  if (images.flow) return raster_tile<RGB, DEPTH, true, false>(view, frame, images, tile);
  if (images.link_id) return raster_tile<RGB, DEPTH, false, true>(view, frame, images, tile);
  raster_tile<RGB, DEPTH, false, false>(view, frame, images, tile);
}
inline void raster_any_tile(const ViewSetup &view, const Frame &frame, const ImageView &images, int tile) {
  if (images.rgb && images.depth) return raster_tile_of<true, true>(view, frame, images, tile);
  if (images.rgb) return raster_tile_of<true, false>(view, frame, images, tile);
  if (images.depth) return raster_tile_of<false, true>(view, frame, images, tile);
  raster_tile_of<false, false>(view, frame, images, tile);
}

}  // namespace GW_ISA
}  // namespace gw
