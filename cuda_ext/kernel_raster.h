// Blending: one tile of one view, front to back.
#pragma once
#include "frame.h"
#include "simd.h"
#include "splat.h"

namespace gw {
namespace GW_ISA {

constexpr int BLOCKS = 16;   // of a tile
constexpr int BATCH = 128;   // list entries sorted into blocks at a time

// A record as one tile sees it: u = ux X + uy Y + u0 and v = vy Y + v0 for X, Y from the tile's corner.
struct alignas(64) Local {
  float u0, v0, ux, uy, vy, peak, wide, tip;
  float r, g, b, z, flow_x, flow_y;
  int32_t link;
  uint32_t id;
};
static_assert(sizeof(Local) == sizeof(Record), "a local record is a record with another origin");

// A batch of a tile's list, and for each block the places in it whose ellipse reaches the block, nearest first.
struct Batch {
  Local local[BATCH];
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
// Lane 4 i + r: the first pixel row of the tile's r-th row of blocks.
GW_INLINE vf block_rows() {
  alignas(64) float y[LANES];
  for (int i = 0; i < LANES; i++) y[i] = BLOCK * static_cast<float>(i & 3) + 0.5f;
  return load_(y);
}

GW_INLINE const Record *record_of(const TileList &list, uint32_t entry) {
  return list.records[entry / TileList::SECOND] + entry % TileList::SECOND;
}

// Four records side by side: lane 4 i + k holds field k of record i.
struct Quad {
  vf near, far;  // x y ux uy, vy peak wide tip
};

// Takes four records over into the tile at (left, top). hits[c], bit 4 i + r: the ellipse of record i, a little widened
// against rounding, reaches the block in row r and column c. Within a row of blocks the ellipse spans an interval of
// x, whose ends lie where y comes nearest to that of its tips.
GW_INLINE void localise(const Record *const n[4], vf left, vf top, vf rows, Local *out, uint32_t hits[4]) {
  constexpr float WIDER = 1e-3f;  // squared log2 units, and pixels
  const Quad q = {load_quads_(&n[0]->x, &n[1]->x, &n[2]->x, &n[3]->x), load_quads_(&n[0]->vy, &n[1]->vy, &n[2]->vy, &n[3]->vy)};
  const vf x = spread_<0>(q.near) - left, y = spread_<1>(q.near) - top, ux = spread_<2>(q.near), uy = spread_<3>(q.near);
  const vf vy = spread_<0>(q.far), wide = spread_<2>(q.far), tip = spread_<3>(q.far);
  const vf reach = spread_<1>(q.far) + vf(WIDER - MIN_LOG2_ALPHA), along = -uy * wide;
  const vf y0 = rows - y, y1 = y0 + vf(BLOCK - 1.0f);
  const vf y_right = min_(max_(tip, y0), y1), y_left = min_(max_(-tip, y0), y1);
  const vf v_right = vy * y_right, v_left = vy * y_left;
  // Where the row is out of reach the roots are NaN, and so nothing compares.
  const vf right = fma_(sqrt_(fnma_(v_right, v_right, reach)), wide, fma_(along, y_right, x));
  const vf leftmost = fnma_(sqrt_(fnma_(v_left, v_left, reach)), wide, fma_(along, y_left, x));
  for (int c = 0; c < 4; c++)
    hits[c] = bits_((right >= vf(BLOCK * c + 0.5f - WIDER)) & (leftmost <= vf(BLOCK * c + BLOCK - 0.5f + WIDER)));
  const vf u0 = -fma_(ux, x, uy * y), v0 = -vy * y;
  for (int i = 0; i < 4; i++) store_(&out[i].u0, load_(&n[i]->x));
  store_quads_(start_quads_(u0, v0, q.near), &out[0].u0, &out[1].u0, &out[2].u0, &out[3].u0);
}

// Loads `count` <= BATCH entries from `at` on of the tile at (left, top) and sorts them into the blocks of `alive`.
inline void load_batch(const TileList &list, uint32_t at, int count, float left, float top, uint32_t alive, Batch &batch) {
  constexpr int AHEAD = 32;  // the list's memory goes on after its end
  const uint32_t *entries = list.entries + at;
  const vf rows = block_rows();
  for (int b = 0; b < BLOCKS; b++) batch.count[b] = 0;
  for (int i = 0; i < count; i += LANES) {
    uint64_t hits[4] = {0, 0, 0, 0};
    for (int k = 0; k < LANES && i + k < count; k += 4) {
      const Record *n[4];
      uint32_t found[4];
      for (int j = 0; j < 4; j++) {
        const int here = i + k + j;
        __builtin_prefetch(record_of(list, entries[here + AHEAD]));
        n[j] = record_of(list, entries[here < count ? here : count - 1]);
      }
      localise(n, vf(left), vf(top), rows, batch.local + i + k, found);
      for (int c = 0; c < 4; c++) hits[c] |= static_cast<uint64_t>(found[c]) << (4 * k);
    }
    if (count - i < LANES)
      for (int c = 0; c < 4; c++) hits[c] &= (uint64_t(1) << 4 * (count - i)) - 1;
    append_to_blocks(hits, i, alive, batch);
  }
}

GW_INLINE vf log2_alpha_at(const Local &n, const Lattice &pixel) {
  const vf u = fma_(vf(n.ux), pixel.x, fma_(vf(n.uy), pixel.y, vf(n.u0))), v = fma_(vf(n.vy), pixel.y, vf(n.v0));
  return log2_alpha(vf(n.peak), u, v);
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

// Not inlined: it needs the registers for itself.
template <bool RGB, bool DEPTH, bool FLOW, bool LINK>
__attribute__((noinline)) uint32_t blend_block(const Batch &batch, const Lattice &pixel, TileState &s, int block) {
  const uint32_t *list = batch.values[block];
  const int count = batch.count[block];
  const Lattice here = pixel;
  vf running = load_(s.running[block]), kept = load_(s.kept[block]);
  vf r, g, b, z, flow_x, flow_y, best, link;
  if (RGB) r = load_(s.r[block]), g = load_(s.g[block]), b = load_(s.b[block]);
  if (DEPTH) z = load_(s.z[block]);
  if (FLOW) flow_x = load_(s.flow_x[block]), flow_y = load_(s.flow_y[block]);
  if (LINK) best = load_(s.best[block]), link = load_(s.link[block]);
  bool alive = true;
  for (int k = 0; k < count; k++) {
    const Local &n = batch.local[list[k]];
    const vf power = log2_alpha_at(n, here);
    const vf alpha = zero_unless_(power >= vf(MIN_LOG2_ALPHA), min_(exp2_fast(power), vf(MAX_ALPHA)));
    const vf after = fnma_(alpha, running, running);
    const vm lives = after > vf(MIN_TRANSMITTANCE);
    const vf weight = alpha * running;
    kept = select_(lives, after, kept);
    running = after;
    if (RGB) {
      r = fma_if_(lives, weight, vf(n.r), r);
      g = fma_if_(lives, weight, vf(n.g), g);
      b = fma_if_(lives, weight, vf(n.b), b);
    }
    if (DEPTH) z = fma_if_(lives, weight, vf(n.z), z);
    if (FLOW) {
      flow_x = fma_if_(lives, weight, vf(n.flow_x), flow_x);
      flow_y = fma_if_(lives, weight, vf(n.flow_y), flow_y);
    }
    if (LINK) {
      float bits;
      memcpy(&bits, &n.link, sizeof bits);
      const vm leads = (weight > best) & lives;
      link = select_(leads, vf(bits), link);
      best = select_(leads, weight, best);
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

template <bool RGB, bool DEPTH, bool FLOW>
GW_INLINE uint32_t clear_tile(const ViewSetup &view, int left, int top, TileState &s) {
  const int32_t nobody = -1;
  float nobody_bits;
  memcpy(&nobody_bits, &nobody, sizeof nobody);
  const vf zero(0.0f);
  uint32_t alive = 0;
  for (int b = 0; b < BLOCKS; b++) {
    const uint32_t inside = pixels_inside(view, left + BLOCK * (b & 3), top + BLOCK * (b >> 2));
    if (inside) alive |= 1u << b;
    const vf one = zero_unless_(mask_from_bits_(inside), vf(1.0f));
    store_(s.running[b], one);
    store_(s.kept[b], one);
    if (RGB) store_(s.r[b], zero), store_(s.g[b], zero), store_(s.b[b], zero);
    if (DEPTH) store_(s.z[b], zero);
    if (FLOW) store_(s.flow_x[b], zero), store_(s.flow_y[b], zero);
    store_(s.best[b], zero);
    store_(s.link[b], vf(nobody_bits));
  }
  return alive;
}

// Stores a block into a picture: quads[k] holds floats 4 k..4 k+3 of each of its rows.
template <int CHANNELS>
GW_INLINE void put_block(float *picture, const ViewSetup &view, int left, int top, const vf *quads) {
  const size_t stride = static_cast<size_t>(view.width) * CHANNELS;
  float *to = picture + top * stride + static_cast<size_t>(left) * CHANNELS;
  if (left + BLOCK <= view.width && top + BLOCK <= view.height) {
    for (int k = 0; k < CHANNELS; k++, to += BLOCK) store_quads_(quads[k], to, to + stride, to + 2 * stride, to + 3 * stride);
    return;
  }
  float rows[BLOCK][CHANNELS * BLOCK];
  for (int k = 0; k < CHANNELS; k++)
    store_quads_(quads[k], rows[0] + BLOCK * k, rows[1] + BLOCK * k, rows[2] + BLOCK * k, rows[3] + BLOCK * k);
  const int columns = view.width - left < BLOCK ? view.width - left : BLOCK;
  for (int row = 0; row < BLOCK && top + row < view.height; row++)
    memcpy(to + row * stride, rows[row], static_cast<size_t>(columns) * CHANNELS * sizeof *to);
}

inline void write_block(const ViewSetup &view, const ImageView &images, int left, int top, TileState &s, int block) {
  if (left >= view.width || top >= view.height) return;
  const vf kept = load_(s.kept[block]), alpha = vf(1.0f) - kept;
  vf quads[3];
  if (images.rgb) {
    vf rgb[3] = {load_(s.r[block]), load_(s.g[block]), load_(s.b[block])};
    for (int c = 0; c < 3; c++) rgb[c] = fma_(kept, vf(view.background[c]), rgb[c]);
    weave3_(rgb[0], rgb[1], rgb[2], quads);
    put_block<3>(images.rgb, view, left, top, quads);
  }
  if (images.alpha) put_block<1>(images.alpha, view, left, top, &alpha);
  if (images.link_id) {
    // A single link (0, all bits zero) leads wherever anything was blended.
    vf link = load_(s.link[block]);
    if (view.link_count == 1) link = select_(alpha > vf(0.0f), vf(0.0f), link);
    put_block<1>(reinterpret_cast<float *>(images.link_id), view, left, top, &link);
  }
  if (!images.depth && !images.flow) return;
  const vf scale = zero_unless_(alpha > vf(0.0f), vf(1.0f) / max_(alpha, vf(1e-20f)));
  if (images.depth) {
    const vf depth = load_(s.z[block]) * scale;
    put_block<1>(images.depth, view, left, top, &depth);
  }
  if (images.flow) {
    weave2_(load_(s.flow_x[block]) * scale, load_(s.flow_y[block]) * scale, quads);
    put_block<2>(images.flow, view, left, top, quads);
  }
}

template <bool RGB, bool DEPTH, bool FLOW, bool LINK>
void raster_tile(const ViewSetup &view, const TileList &list, const ImageView &images, int tile) {
  const int left = tile % view.tiles_x * TILE, top = tile / view.tiles_x * TILE;
  const Lattice pixel = lattice(1.0f, 0.5f, 0.5f);
  TileState state;
  Batch batch;
  uint32_t alive = clear_tile<RGB, DEPTH, FLOW>(view, left, top, state);
  for (uint32_t at = 0; at < list.count && alive; at += BATCH) {
    const int count = list.count - at < BATCH ? static_cast<int>(list.count - at) : BATCH;
    load_batch(list, at, count, left, top, alive, batch);
    for (uint32_t todo = alive; todo; todo &= todo - 1) {
      const int block = __builtin_ctz(todo);
      const Lattice here = {pixel.x + vf(BLOCK * (block & 3)), pixel.y + vf(BLOCK * (block >> 2))};
      if (!blend_block<RGB, DEPTH, FLOW, LINK>(batch, here, state, block)) alive &= ~(1u << block);
    }
  }
  for (int b = 0; b < BLOCKS; b++) write_block(view, images, left + BLOCK * (b & 3), top + BLOCK * (b >> 2), state, b);
}

// Marks the entries of a block's batch that one of its pixels may see; false when nothing behind can be seen.
inline bool mark_block(const Batch &batch, const Lattice &pixel, int block, float *transmittance, uint8_t *used) {
  constexpr float SLACK = 0.01f, DARK = 0.5f * MIN_TRANSMITTANCE;  // generous, by far more than rounding
  vf running = load_(transmittance);
  for (int k = 0; k < batch.count[block]; k++) {
    const uint32_t at = batch.values[block][k];
    const vf power = log2_alpha_at(batch.local[at], pixel);
    if (any_((power >= vf(MIN_LOG2_ALPHA - SLACK)) & (running > vf(DARK)))) used[at] = 1;
    const vf alpha = zero_unless_(power >= vf(MIN_LOG2_ALPHA + SLACK), min_(exp2_fast(power), vf(MAX_ALPHA)));
    running = fnma_(alpha, running, running);
  }
  store_(transmittance, running);
  return any_(running > vf(DARK));
}

// used[i] = 1 for the entries that some pixel of the tile may see, else 0. What more Gaussians in front do is to hide
// further: without the others, a list that is merged with more draws the same bits.
inline void mark_tile(const ViewSetup &view, const TileList &list, uint8_t *used, int tile) {
  const int left = tile % view.tiles_x * TILE, top = tile / view.tiles_x * TILE;
  const Lattice pixel = lattice(1.0f, 0.5f, 0.5f);
  alignas(64) float transmittance[BLOCKS][LANES];
  Batch batch;
  uint32_t alive = 0;
  for (int b = 0; b < BLOCKS; b++) {
    const uint32_t inside = pixels_inside(view, left + BLOCK * (b & 3), top + BLOCK * (b >> 2));
    if (inside) alive |= 1u << b;
    store_(transmittance[b], zero_unless_(mask_from_bits_(inside), vf(1.0f)));
  }
  for (uint32_t i = 0; i < list.count; i++) used[i] = 0;
  for (uint32_t at = 0; at < list.count && alive; at += BATCH) {
    const int count = list.count - at < BATCH ? static_cast<int>(list.count - at) : BATCH;
    load_batch(list, at, count, left, top, alive, batch);
    for (uint32_t todo = alive; todo; todo &= todo - 1) {
      const int block = __builtin_ctz(todo);
      const Lattice here = {pixel.x + vf(BLOCK * (block & 3)), pixel.y + vf(BLOCK * (block >> 2))};
      if (!mark_block(batch, here, block, transmittance[block], used + at)) alive &= ~(1u << block);
    }
  }
}

template <bool RGB, bool DEPTH>
inline void raster_tile_of(const ViewSetup &view, const TileList &list, const ImageView &images, int tile) {
  const bool links = images.link_id && view.link_count > 1;
  if (images.flow && links) return raster_tile<RGB, DEPTH, true, true>(view, list, images, tile);
  if (images.flow) return raster_tile<RGB, DEPTH, true, false>(view, list, images, tile);
  if (links) return raster_tile<RGB, DEPTH, false, true>(view, list, images, tile);
  raster_tile<RGB, DEPTH, false, false>(view, list, images, tile);
}
inline void raster_any_tile(const ViewSetup &view, const TileList &list, const ImageView &images, int tile) {
  if (images.rgb && images.depth) return raster_tile_of<true, true>(view, list, images, tile);
  if (images.rgb) return raster_tile_of<true, false>(view, list, images, tile);
  if (images.depth) return raster_tile_of<false, true>(view, list, images, tile);
  raster_tile_of<false, false>(view, list, images, tile);
}

}  // namespace GW_ISA
}  // namespace gw
