// The blending's backward pass: one macro tile of one view, front to back over the forward's lists.
//
// With w the blend weights and D_j = dL/dw_j, dL/dalpha_i = T_i D_i - (sum_{j>i} w_j D_j) / (1 - alpha_i); the sum over
// all j follows from the finished pixel, so that walking forward needs nothing stored but the pictures.
#pragma once
#include "kernel_raster.h"

namespace gw {
namespace GW_ISA {

struct BackwardState {
  alignas(64) float running[BLOCKS][LANES], suffix[BLOCKS][LANES];  // transmittance; sum of w D still to come
  alignas(64) float r[BLOCKS][LANES], g[BLOCKS][LANES], b[BLOCKS][LANES], z[BLOCKS][LANES];  // dL/d(channel sum)
  alignas(64) float flow_x[BLOCKS][LANES], flow_y[BLOCKS][LANES], constant[BLOCKS][LANES];
  // For each pixel of a block (in the order of store_pairs_) what its pair (dL/d log2 alpha, weight) is multiplied
  // with: lanes of GradientRow.
  alignas(64) float basis[BLOCKS][LANES][LANES];
};

// Sixteen pixels of a picture with CHANNELS interleaved; 0 where there is no picture or no pixel.
template <int CHANNELS>
GW_INLINE void read_block(const float *picture, const ViewSetup &view, int left, int top, vf out[CHANNELS]) {
  const size_t stride = static_cast<size_t>(view.width) * CHANNELS;
  const float *from = picture ? picture + top * stride + static_cast<size_t>(left) * CHANNELS : nullptr;
  float rows[BLOCK][CHANNELS * BLOCK] = {};
  const float *row[BLOCK] = {rows[0], rows[1], rows[2], rows[3]};
  const bool whole = left + BLOCK <= view.width && top + BLOCK <= view.height;
  const int columns = view.width - left < BLOCK ? view.width - left : BLOCK;
  for (int y = 0; picture && y < BLOCK && top + y < view.height; y++)
    if (whole)
      row[y] = from + y * stride;
    else
      memcpy(rows[y], from + y * stride, static_cast<size_t>(columns) * CHANNELS * sizeof *from);
  vf quads[CHANNELS];
  for (int k = 0; k < CHANNELS; k++)
    quads[k] = load_quads_(row[0] + BLOCK * k, row[1] + BLOCK * k, row[2] + BLOCK * k, row[3] + BLOCK * k);
  if (CHANNELS == 1) out[0] = quads[0];
  if (CHANNELS == 2) unweave2_(quads, out);
  if (CHANNELS == 3) unweave3_(quads, out);
}

// Loads a block's pixels and their gradients; `centre` is the origin of the basis' X and Y.
inline uint32_t begin_block(const ViewSetup &view, const ImageView &pictures, const ImageView &gradients, int left, int top,
                            const float centre[2], BackwardState &s, int block) {
  const uint32_t inside = pixels_inside(view, left, top);
  if (!inside) return 0;
  vf alpha, constant, z, drawn_z, rgb[3], drawn_rgb[3], flow[2], drawn_flow[2];
  read_block<1>(pictures.alpha, view, left, top, &alpha);
  read_block<1>(gradients.alpha, view, left, top, &constant);
  read_block<3>(gradients.rgb, view, left, top, rgb);
  read_block<3>(pictures.rgb, view, left, top, drawn_rgb);
  const vf share = zero_unless_(alpha > vf(0.0f), vf(1.0f) / max_(alpha, vf(1e-20f)));
  vf suffix = constant * alpha;
  for (int c = 0; c < 3; c++) {
    suffix = fma_(rgb[c], drawn_rgb[c] - vf(view.background[c]), suffix);
    constant = fnma_(rgb[c], vf(view.background[c]), constant);
  }
  z = flow[0] = flow[1] = vf(0.0f);
  if (gradients.depth) {
    read_block<1>(gradients.depth, view, left, top, &z);
    read_block<1>(pictures.depth, view, left, top, &drawn_z);
    z *= share;
    constant = fnma_(z, drawn_z, constant);
  }
  if (gradients.flow) {
    read_block<2>(gradients.flow, view, left, top, flow);
    read_block<2>(pictures.flow, view, left, top, drawn_flow);
    for (int c = 0; c < 2; c++) {
      flow[c] *= share;
      constant = fnma_(flow[c], drawn_flow[c], constant);
    }
  }
  store_(s.running[block], zero_unless_(mask_from_bits_(inside), vf(1.0f)));
  store_(s.suffix[block], suffix);
  store_(s.constant[block], constant);
  store_(s.r[block], rgb[0]), store_(s.g[block], rgb[1]), store_(s.b[block], rgb[2]), store_(s.z[block], z);
  store_(s.flow_x[block], flow[0]), store_(s.flow_y[block], flow[1]);
  const Lattice pixel = lattice(1.0f, left + 0.5f - centre[0], top + 0.5f - centre[1]);
  const vf x = pixel.x, y = pixel.y, zero(0.0f);
  const vf columns[LANES] = {vf(1.0f), rgb[0], x, rgb[1], y, rgb[2], x * x, z, x * y, flow[0], y * y, flow[1], zero, zero, zero, zero};
  vf rows[LANES];
  transpose_(columns, rows);
  for (int i = 0; i < LANES; i++) store_(s.basis[block][i], rows[pair_pixel(i)]);
  return 1u << block;
}

// Adds the outer sums of `count` Gaussians' pairs to their rows.
GW_INLINE void add_pairs(const float (*pairs)[2 * LANES], const uint32_t *places, int count, GradientRow *const *rows,
                         const float (*basis)[LANES]) {
  vf b[LANES];
  for (int i = 0; i < LANES; i++) b[i] = load_(basis[i]);
  for (int k = 0; k < count; k++) {
    float *row = rows[places[k]]->lane;
    vf even = load_(row), odd(0.0f);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i += 2) {
      even = fma_(pair_(pairs[k] + 2 * i), b[i], even);
      odd = fma_(pair_(pairs[k] + 2 * i + 2), b[i + 1], odd);
    }
    store_(row, even + odd);
  }
}

template <bool GEOMETRY>  // whether depth or flow have gradients
__attribute__((noinline)) uint32_t backward_block(const Batch &batch, const Lattice &pixel, GradientRow *const *rows,
                                                  BackwardState &s, int block) {
  const uint32_t *places = batch.values[block];
  const int count = batch.count[block];
  const Lattice here = pixel;
  constexpr int GROUP = 16;
  alignas(64) float pairs[GROUP][2 * LANES];
  vf running = load_(s.running[block]), suffix = load_(s.suffix[block]);
  const vf r = load_(s.r[block]), g = load_(s.g[block]), b = load_(s.b[block]), constant = load_(s.constant[block]);
  const vf z = load_(s.z[block]), flow_x = load_(s.flow_x[block]), flow_y = load_(s.flow_y[block]);
  bool alive = true;
  int waiting = 0, k = 0;
  while (k < count && alive) {
    const Local &n = batch.local[places[k]];
    const vf power = log2_alpha_at(n, here);
    const vf full = exp2_fast(power);
    const vf alpha = zero_unless_(power >= vf(MIN_LOG2_ALPHA), min_(full, vf(MAX_ALPHA)));
    const vf after = fnma_(alpha, running, running);
    const vm lives = after > vf(MIN_TRANSMITTANCE);
    const vf weight = mul_if_(lives, alpha, running);
    vf d = fma_(r, vf(n.r), fma_(g, vf(n.g), fma_(b, vf(n.b), constant)));
    if (GEOMETRY) d = fma_(z, vf(n.z), fma_(flow_x, vf(n.flow_x), fma_(flow_y, vf(n.flow_y), d)));
    suffix = fnma_(weight, d, suffix);
    const vf by_alpha = fnma_(suffix, reciprocal_(vf(1.0f) - alpha), running * d);
    const vf by_power = mul_if_(lives & (full < vf(MAX_ALPHA)), alpha * by_alpha, vf(LN_2));
    running = after;
    store_pairs_(pairs[waiting], by_power, weight);
    k++;
    if (++waiting == GROUP) {
      add_pairs(pairs, places + k - GROUP, GROUP, rows, s.basis[block]);
      waiting = 0;
    }
    if ((k & 3) == 0 && !any_(lives)) alive = false;
  }
  if (waiting) add_pairs(pairs, places + k - waiting, waiting, rows, s.basis[block]);
  store_(s.running[block], running);
  store_(s.suffix[block], suffix);
  return alive ? 1u << block : 0;
}

// The row into which macro tile (x, y) sums a record's gradient.
GW_INLINE size_t row_of(const Frame &frame, uint32_t record, int x, int y) {
  const Placement &place = frame.places[record];
  const TileRect rect = place.rect;
  const int x0 = rect.x0 / MACRO, width = rect.x1 / MACRO - x0 + 1;
  return frame.chunk_slots[record / CHUNK] + place.slot + static_cast<size_t>((y - rect.y0 / MACRO) * width + x - x0);
}

template <bool GEOMETRY>
void backward_tile(const ViewSetup &view, const Frame &frame, const ImageView &pictures, const ImageView &gradients,
                   GradientRow *all_rows, int macro_x, int macro_y, int tile_x, int tile_y) {
  const int left = tile_x * TILE, top = tile_y * TILE, tile = tile_y * view.tiles_x + tile_x;
  const TileList list = tile_list(frame, tile);
  if (!list.count) return;
  const Lattice pixel = lattice(1.0f, 0.5f, 0.5f);
  const float centre[2] = {(macro_x + 0.5f) * MACRO * TILE, (macro_y + 0.5f) * MACRO * TILE};
  BackwardState state;
  Batch batch;
  GradientRow *rows[BATCH];
  uint32_t alive = 0;
  for (int b = 0; b < BLOCKS; b++)
    alive |= begin_block(view, pictures, gradients, left + BLOCK * (b & 3), top + BLOCK * (b >> 2), centre, state, b);
  for (uint32_t at = 0; at < list.count && alive; at += BATCH) {
    const int count = list.count - at < BATCH ? static_cast<int>(list.count - at) : BATCH;
    for (int i = 0; i < count; i++) {
      __builtin_prefetch(&frame.places[list.entries[at + i + 16]]);
      rows[i] = all_rows + row_of(frame, list.entries[at + i], macro_x, macro_y);
      __builtin_prefetch(rows[i], 1);
    }
    load_batch(list, at, count, left, top, alive, batch);
    for (uint32_t todo = alive; todo; todo &= todo - 1) {
      const int block = __builtin_ctz(todo);
      const Lattice here = {pixel.x + vf(BLOCK * (block & 3)), pixel.y + vf(BLOCK * (block >> 2))};
      if (!backward_block<GEOMETRY>(batch, here, rows, state, block)) alive &= ~(1u << block);
    }
  }
}

inline void backward_macro(const ViewSetup &view, const Frame &frame, const ImageView &pictures, const ImageView &gradients,
                           GradientRow *rows, int macro) {
  const int macro_x = macro % view.macros_x, macro_y = macro / view.macros_x;
  for (int y = macro_y * MACRO; y < (macro_y + 1) * MACRO && y < view.tiles_y; y++)
    for (int x = macro_x * MACRO; x < (macro_x + 1) * MACRO && x < view.tiles_x; x++)
      if (gradients.depth || gradients.flow)
        backward_tile<true>(view, frame, pictures, gradients, rows, macro_x, macro_y, x, y);
      else
        backward_tile<false>(view, frame, pictures, gradients, rows, macro_x, macro_y, x, y);
}

}  // namespace GW_ISA
}  // namespace gw
