// One call of the CUDA renderer: its tensors, its sizes, and how the caller's buffers are laid out.
#pragma once
#include <cstdint>
#include <cstring>

#include "gworld_cuda.h"
#include "splat.h"

#if defined(__CUDACC__)
#define GW_DEVICE __device__ __forceinline__
#define GW_UNROLL _Pragma("unroll")
#else
#define GW_DEVICE inline
#define GW_UNROLL
#endif

namespace gw {
namespace cuda {

using namespace scalar;

constexpr int TILE = 16;         // pixels
constexpr int BLOCK = 256;       // threads: a tile's pixels
constexpr int WARP = 32;         // threads: a tile's 8 x 4 pixels
constexpr int WARPS = BLOCK / WARP;
constexpr int POSE_SUMS = 24;    // gradient by camera_from_link (rows, shift), then by the previous one
constexpr int LONG = 64;         // pairs from which on a block, not a thread, adds up a splat's rows
constexpr int64_t MOST = INT32_MAX - 2 * BLOCK;  // of views x Gaussians, of pairs, of views x tiles

// A visible Gaussian in one view; 64 bytes. Names as in Ellipse and log2_alpha of splat.h.
struct alignas(16) Splat {
  float x, y, ux, uy, vy, peak, along_x, along_y;
  float r, g, b, z, flow_x, flow_y;
  int32_t link;
};

struct LinkPose {
  float row[9], shift[3];
};

struct Range {  // first <= place < last
  uint32_t first, last;
};

// Gradient of a scalar by one splat: sums over pixels of EllipseSums, then by r, g, b, z, flow x, flow y.
struct alignas(16) SplatRow {
  float sum[12];
};

struct Call {
  gw_scene scene;
  gw_views views;
  gw_images images, image_gradients;
  gw_gradients gradients;
  int32_t view_count, tiles_x, tiles_y, tile_count;
  int32_t depth_bits, key_bits;  // a key is (view and tile, depth bits above those of the near plane)
  uint32_t near_bits;
  bool want_flow;  // the splats carry flow
  bool slotted;    // every pair has a gradient row of its own (no atomics, the same bits in every run)
  bool want_poses;
  bool wide_sh;    // rows of coefficients (and of their gradients) are aligned to 16 bytes
  int64_t splat_count, pair_count;

  // State: kept from gw_cuda_project to the last gw_cuda_backward. A splat is row view * N + Gaussian.
  LinkPose *poses, *previous_poses;  // [views, L] camera_from_link
  Splat *splats;                     // [splats], only the visible ones are written
  int64_t *offsets;                  // [splats + 1] first pair of each splat
  Range *ranges;                     // [views * tiles + 1] of list; the last is for no tile
  // Lists: made by gw_cuda_draw, kept for gw_cuda_backward.
  uint32_t *list;   // [pairs] splats of all tiles, nearest first
  uint32_t *slots;  // [pairs] which pair, in order of splats, each entry of list is; null unless slotted
  // Scratch.
  uint32_t *tile_counts;             // [splats + 1]
  uint64_t *keys_in, *keys;          // [pairs]
  uint32_t *payload, *owners;        // [pairs]
  SplatRow *rows;                    // [pairs] if slotted, else [splats]
  uint32_t *long_count, *long_splats;  // [1], [pairs / LONG] splats with LONG pairs or more
  uint32_t *link_keys_in, *link_keys, *rank_in, *rank;  // [N] Gaussians in order of their links
  Range *link_ranges;                // [L] of rank
  float *pose_parts;                 // [views, pieces + L, POSE_SUMS]
  double *pose_sums;                 // [views, L, POSE_SUMS]
  void *temporary;
  size_t temporary_bytes;
};

GW_HD int64_t pieces_of(const Call &call) { return (call.scene.count + BLOCK - 1) / BLOCK; }

// Hands out parts of a buffer; with no buffer it only measures.
struct Carver {
  char *base;
  size_t used = 0;
  template <class T>
  void take(T *&pointer, int64_t count) {
    used = (used + 255) / 256 * 256;
    pointer = base ? reinterpret_cast<T *>(base + used) : nullptr;
    used += static_cast<size_t>(count) * sizeof(T);
  }
  void take_temporary(Call &call, size_t bytes) {
    char *memory = nullptr;
    take(memory, static_cast<int64_t>(bytes + 1));
    call.temporary = memory;
    call.temporary_bytes = bytes;
  }
};

inline size_t carve_state(Call &call, void *memory) {
  Carver carver{static_cast<char *>(memory)};
  const int64_t poses = static_cast<int64_t>(call.view_count) * call.scene.link_count;
  carver.take(call.poses, poses);
  carver.take(call.previous_poses, call.want_flow ? poses : 0);
  carver.take(call.splats, call.splat_count);
  carver.take(call.offsets, call.splat_count + 1);
  carver.take(call.ranges, static_cast<int64_t>(call.view_count) * call.tile_count + 1);
  return carver.used + 256;
}

inline size_t carve_lists(Call &call, void *memory) {
  Carver carver{static_cast<char *>(memory)};
  carver.take(call.list, call.pair_count);
  if (call.slotted) carver.take(call.slots, call.pair_count);
  return carver.used + 256;
}

inline int bit_width(uint64_t value) {
  int bits = 0;
  for (; value; value >>= 1) bits++;
  return bits;
}
GW_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace cuda
}  // namespace gw
