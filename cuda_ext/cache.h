// A background that stands still is drawn once; frames over it draw only what moves, to the same bits.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "render.h"

namespace gw {

// Some rows of a scene, copied side by side in their order.
struct Selection {
  std::vector<uint32_t> rows;
  std::vector<float> means, quats, log_scales, opacity_logits, sh;
  std::vector<int32_t> links;
  gw_scene scene;
};

struct Pictures {
  Buffer<float> rgb, alpha, depth, flow;
  Buffer<int32_t> link_id;
  ImageView view;
};

// What one camera sees of the Gaussians that stand still.
struct StillView {
  size_t count = 0;
  Buffer<Record> records;  // nearest first, equal depths by row
  Buffer<uint64_t> keys;   // (depth bits << 32 | row), beside the records: increasing
  Buffer<uint32_t> tile_start, lists;  // each list increases
  Pictures pictures;
};

struct Background {
  int width = 0, height = 0;
  Selection movers;
  Buffer<float> columns;  // of the movers
  std::vector<std::unique_ptr<StillView>> cameras;
  std::vector<uint8_t> touched;  // [W, C, tiles] of the frame drawn last: movers were there
};

// Scratch of a thread that draws views by itself, and of all threads together when they share one view (the first one).
struct Worker {
  Pool alone{1};
  Frame frame;
  Buffer<LinkPose> poses;
  Buffer<uint32_t> ranks;    // beside the records of movers: how many still records lie before each
  Buffer<uint32_t> tiles;    // where movers are now
  Buffer<size_t> starts;     // of each such tile in `merged`
  Buffer<uint32_t> merged;
};
using Workers = std::vector<std::unique_ptr<Worker>>;

// Calls draw(worker, pool, view) for views 0..count-1 until one fails: each on one thread when `apart`, else each on all.
template <class Draw>
int32_t each_view(Workers &workers, Pool &pool, int count, bool apart, const Draw &draw) {
  const size_t needed = apart ? static_cast<size_t>(pool.threads()) : 1;
  while (workers.size() < needed) workers.push_back(std::make_unique<Worker>());
  int32_t status = GW_OK;
  if (!apart) {
    for (int view = 0; view < count && status == GW_OK; view++) status = draw(*workers[0], pool, view);
    return status;
  }
  std::atomic<int> next{0};
  std::atomic<int32_t> failure{GW_OK};
  pool.run(pool.threads(), [&](int thread) {
    Worker &worker = *workers[static_cast<size_t>(thread)];
    for (int view; failure == GW_OK && (view = next++) < count;) {
      int32_t found = GW_OUT_OF_MEMORY;
      try {
        found = draw(worker, worker.alone, view);
      } catch (...) {  // out of memory
      }
      if (found != GW_OK) failure = found;
    }
  });
  return failure;
}

// Draws, for each camera, what links do not move (`moves` [L]) in the first world. `images` says which pictures to keep.
int32_t build_background(const Kernels &kernels, const gw_scene &scene, const uint8_t *moves, const gw_views &views,
                         const gw_images &images, Pool &pool, Background &background);

// Draws one view of the movers over the background. With `kept`, the pictures hold the frame drawn last.
int32_t draw_over(const Kernels &kernels, Background &background, const ViewSetup &view, const ImageView &images, int camera,
                  uint8_t *touched, bool kept, Worker &worker, Pool &pool);

}  // namespace gw
