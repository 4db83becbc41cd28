// What the stages of one call hand to each other; plain memory, shared by all instruction sets.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "gworld_native.h"

namespace gw {

constexpr int CHUNK = 1024;  // Gaussians projected as one task
constexpr int TILE = 16;     // pixels
constexpr int BLOCK = 4;     // pixels: a tile is 16 blocks, a block is 16 pixels
constexpr int MAX_TILES = (1 << 16) / TILE;  // in a row: pictures are at most 2^16 pixels wide
constexpr int MACRO = 4;     // tiles: a macro tile is one task, and one partial sum of a Gaussian's gradient
constexpr int POSE_SUMS = 24;  // gradient by a pose (rows, shift) now, and by the previous one

// Memory that only grows and is not initialised; 64-byte aligned, with slack for whole-vector writes past the end.
template <class T>
struct Buffer {
  T *data = nullptr;
  size_t capacity = 0;
  Buffer() = default;
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { std::free(data); }
  T &operator[](size_t i) { return data[i]; }
  const T &operator[](size_t i) const { return data[i]; }
  void reserve(size_t count) {
    if (count <= capacity) return;
    if (count > (SIZE_MAX / 2) / sizeof(T)) throw std::bad_alloc();
    std::free(data);
    data = nullptr;
    capacity = 0;
    const size_t bytes = (count * sizeof(T) + 4096 + 63) / 64 * 64;
    data = static_cast<T *>(std::aligned_alloc(64, bytes));
    if (!data) throw std::bad_alloc();
    capacity = count;
  }
};

// A visible Gaussian in one view: one cache line. u, v, peak: see Ellipse in splat.h; `wide` is 1 / ux, `tip` how far below
// the centre the rightmost point of the ellipse of least alpha lies.
struct alignas(64) Record {
  float x, y, ux, uy, vy, peak, wide, tip;
  float r, g, b, z, flow_x, flow_y;
  int32_t link;
  uint32_t id;  // row of the Gaussian
};
static_assert(sizeof(Record) == 64, "a record fills a cache line");

struct TileRect {
  uint16_t x0, x1, y0, y1;  // inclusive, in tiles
};

// What does not depend on the view, by columns: mean 3, axes 9, log2 opacity of each chunk in turn. Kept for the whole
// call when there are several views; with `data` null a kernel prepares its chunk itself, in memory that stays in cache.
struct Columns {
  static constexpr int COUNT = 13;
  float *data = nullptr;
  float *of(int chunk) const { return data + static_cast<size_t>(chunk) * (COUNT * CHUNK); }
};
struct alignas(64) ChunkColumns {
  float value[Columns::COUNT][CHUNK];
};

// A record in one row of tiles.
struct RowEntry {
  uint32_t record;
  uint16_t x0, x1;
};

// Where a record lies: its tiles, and its first gradient row within the rows of its chunk.
struct Placement {
  TileRect rect;
  uint32_t slot;
  uint32_t unused;
};

// Where a row of tiles begins among the row entries and among the list entries.
struct RowStart {
  uint32_t entries, tiles;
};

struct LinkPose {
  float row[9], shift[3];
};

struct ViewSetup {
  int width, height, tiles_x, tiles_y, macros_x, macros_y;
  float intrinsics[9], previous_intrinsics[9];
  float near_plane, far_plane, background[3];
  bool antialiased, want_rgb, want_flow;
  const LinkPose *poses;           // [L] camera_from_link
  const LinkPose *previous_poses;  // [L] or null
  int links() const { return link_count; }
  int link_count;
};

// One view after projection, sorting and binning. Records of chunk c start at c * CHUNK.
struct Frame {
  Buffer<Record> records;
  Buffer<Placement> places;      // beside the records
  Buffer<uint32_t> keys;         // depth bits, beside the records
  Buffer<uint32_t> chunk_count;  // records of each chunk
  Buffer<uint64_t> chunk_slots;  // first gradient row of each chunk; one more entry holds the total
  Buffer<uint64_t> order, order_swap;  // (depth bits << 32 | record), sorted
  size_t visible = 0;
  Buffer<TileRect> sorted_rects;
  Buffer<uint32_t> row_counts;    // [parts, tile rows + 1]
  Buffer<uint64_t> row_tiles;     // the same, of list entries
  Buffer<RowStart> row_start;     // [tile rows + 1]
  Buffer<RowEntry> row_entries;   // records of each row of tiles, nearest first
  Buffer<uint32_t> tile_start;    // [tiles + 1]
  Buffer<uint32_t> lists;         // records of each tile, nearest first
};

// What is blended in one tile, nearest first; an entry's top bit tells which of the two arrays it counts in.
struct TileList {
  static constexpr uint32_t SECOND = 1u << 31;
  const Record *records[2];  // neither is null
  const uint32_t *entries;   // their memory goes on after the last one
  uint32_t count;
};
inline TileList tile_list(const Frame &frame, int tile) {
  const uint32_t first = frame.tile_start[tile];
  return {{frame.records.data, frame.records.data}, frame.lists.data + first, frame.tile_start[tile + 1] - first};
}

struct ImageView {  // one view's pictures; null: not asked for
  float *rgb, *alpha, *depth, *flow;
  int32_t *link_id;
};

// A macro tile's share of one record's gradient: lanes 2j = sums of dL/d(log2 alpha) times 1, X, Y, XX, XY, YY (pixels from
// the macro tile's centre), lanes 2j+1 = sums of weight times dL/d(r, g, b, z, flow x, flow y).
struct alignas(64) GradientRow {
  float lane[16];
};

// One table per instruction set.
struct Kernels {
  void (*prepare)(const gw_scene &, int chunk, float *columns);
  void (*project)(const gw_scene &, const Columns &, const ViewSetup &, Frame &, int chunk);
  void (*raster)(const ViewSetup &, const TileList &, const ImageView &, int tile);
  void (*mark)(const ViewSetup &, const TileList &, uint8_t *used, int tile);
  void (*raster_backward)(const ViewSetup &, const Frame &, const ImageView &pictures, const ImageView &gradients,
                          GradientRow *rows, int macro);
  void (*project_backward)(const gw_scene &, const Columns &, const ViewSetup &, const Frame &, const GradientRow *rows,
                           const gw_gradients &, double *pose_sums, int chunk);
};
const Kernels &kernels_portable();
const Kernels &kernels_avx2();
const Kernels &kernels_avx512();

}  // namespace gw
