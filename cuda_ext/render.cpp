#include "render.h"

#include <cstring>

#include "lists.h"

namespace gw {

void fold_poses(const float *world_from_link, const float *world_from_camera, int links, LinkPose *poses) {
  const float *camera = world_from_camera;
  for (int l = 0; l < links; l++) {
    const float *link = world_from_link + 16 * static_cast<size_t>(l);
    for (int i = 0; i < 3; i++) {  // row i of the camera's rotation transposed
      double shift = 0;
      for (int k = 0; k < 3; k++) shift += double(camera[4 * k + i]) * (double(link[4 * k + 3]) - camera[4 * k + 3]);
      poses[l].shift[i] = static_cast<float>(shift);
      for (int j = 0; j < 3; j++) {
        double sum = 0;
        for (int k = 0; k < 3; k++) sum += double(camera[4 * k + i]) * link[4 * k + j];
        poses[l].row[3 * i + j] = static_cast<float>(sum);
      }
    }
  }
}

ViewSetup setup_view(const gw_scene &scene, const gw_views &views, const gw_images &images, int world, int camera,
                     Buffer<LinkPose> &poses) {
  ViewSetup view = {};
  view.width = views.width;
  view.height = views.height;
  view.tiles_x = (views.width + TILE - 1) / TILE;
  view.tiles_y = (views.height + TILE - 1) / TILE;
  view.macros_x = (view.tiles_x + MACRO - 1) / MACRO;
  view.macros_y = (view.tiles_y + MACRO - 1) / MACRO;
  std::memcpy(view.intrinsics, views.intrinsics + 9 * camera, sizeof view.intrinsics);
  view.want_flow = images.flow != nullptr;
  if (view.want_flow) std::memcpy(view.previous_intrinsics, views.previous_intrinsics + 9 * camera, sizeof view.intrinsics);
  view.near_plane = views.near_plane;
  view.far_plane = views.far_plane;
  std::memcpy(view.background, views.background, sizeof view.background);
  view.antialiased = views.antialiased != 0;
  view.link_count = scene.link_count;
  const size_t links = static_cast<size_t>(scene.link_count), first = 16 * links * static_cast<size_t>(world);
  poses.reserve(2 * links);
  fold_poses(views.world_from_link + first, views.world_from_camera + 16 * camera, scene.link_count, poses.data);
  view.poses = poses.data;
  if (view.want_flow) {
    fold_poses(views.previous_world_from_link + first, views.previous_world_from_camera + 16 * camera, scene.link_count,
               poses.data + links);
    view.previous_poses = poses.data + links;
  }
  return view;
}

int32_t build_frame(const Kernels &kernels, const gw_scene &scene, const Columns &columns, const ViewSetup &view,
                    Frame &frame, Pool &pool) {
  const int chunks = chunks_of(scene.count);
  const size_t padded = static_cast<size_t>(chunks) * CHUNK;
  frame.records.reserve(padded);
  frame.places.reserve(padded);
  frame.keys.reserve(padded);
  frame.chunk_count.reserve(chunks);
  frame.chunk_slots.reserve(chunks + 1);
  pool.run(chunks, [&](int chunk) { kernels.project(scene, columns, view, frame, chunk); });
  uint64_t slots = 0;  // counts to starts
  for (int chunk = 0; chunk <= chunks; chunk++) {
    const uint64_t here = chunk < chunks ? frame.chunk_slots[chunk] : 0;
    frame.chunk_slots[chunk] = slots;
    slots += here;
  }
  sort_by_depth(frame, chunks, pool);
  return fill_tile_lists(view, frame, pool) ? GW_OK : GW_TOO_MANY;
}

void draw_frame(const Kernels &kernels, const ViewSetup &view, const Frame &frame, const ImageView &images, Pool &pool) {
  constexpr int AT_ONCE = 4;
  const int tiles = view.tiles_x * view.tiles_y;
  pool.run((tiles + AT_ONCE - 1) / AT_ONCE, [&](int task) {
    const int end = (task + 1) * AT_ONCE < tiles ? (task + 1) * AT_ONCE : tiles;
    for (int tile = task * AT_ONCE; tile < end; tile++) kernels.raster(view, tile_list(frame, tile), images, tile);
  });
}

namespace {

// Zeros in a chunk's rows of the gradients, which are soon added to: they are then still in the cache.
void clear_chunk(const gw_scene &scene, const gw_gradients &out, int chunk) {
  const int64_t begin = chunk * int64_t(CHUNK), rows = scene.count - begin < CHUNK ? scene.count - begin : CHUNK;
  auto clear = [&](float *gradient, int64_t width) {
    if (gradient) std::memset(gradient + begin * width, 0, sizeof *gradient * static_cast<size_t>(rows * width));
  };
  clear(out.means, 3);
  clear(out.quats, 4);
  clear(out.log_scales, 3);
  clear(out.opacity_logits, 1);
  clear(out.sh, 3 * int64_t(scene.sh_count));
}

}  // namespace

const double *backward_frame(const Kernels &kernels, const gw_scene &scene, const Columns &columns, const ViewSetup &view,
                             Frame &frame, const ImageView &pictures, const ImageView &image_gradients,
                             const gw_gradients &out, bool first, BackwardScratch &scratch, Pool &pool) {
  constexpr int PARTS = 64;  // fixed, so that sums do not depend on the number of threads
  const int chunks = chunks_of(scene.count);
  const size_t sums = static_cast<size_t>(view.link_count) * POSE_SUMS;
  const bool poses = out.world_from_link || out.world_from_camera || out.previous_world_from_link || out.previous_world_from_camera;
  scratch.rows.reserve(chunks ? frame.chunk_slots[chunks] : 0);
  scratch.pose_sums.reserve(PARTS * sums);
  GradientRow *rows = scratch.rows.data;
  pool.run(chunks, [&](int chunk) {
    const uint64_t first = frame.chunk_slots[chunk], last = frame.chunk_slots[chunk + 1];
    if (last > first) std::memset(static_cast<void *>(rows + first), 0, sizeof *rows * (last - first));
  });
  pool.run(view.macros_x * view.macros_y, [&](int macro) {
    kernels.raster_backward(view, frame, pictures, image_gradients, rows, macro);
  });
  pool.run(PARTS, [&](int part) {
    double *part_sums = poses ? scratch.pose_sums.data + part * sums : nullptr;
    if (poses) std::memset(part_sums, 0, sums * sizeof *part_sums);
    const int end = static_cast<int>(int64_t(chunks) * (part + 1) / PARTS);
    for (int chunk = static_cast<int>(int64_t(chunks) * part / PARTS); chunk < end; chunk++) {
      if (first) clear_chunk(scene, out, chunk);
      kernels.project_backward(scene, columns, view, frame, rows, out, part_sums, chunk);
    }
  });
  if (!poses) return nullptr;
  double *total = scratch.pose_sums.data;
  for (int part = 1; part < PARTS; part++)
    for (size_t i = 0; i < sums; i++) total[i] += total[part * sums + i];
  return total;
}

// With A = Rc^T Rl and b = Rc^T (tl - tc): dRl = Rc dA, dtl = Rc db, dRc = Rl dA^T + (tl - tc) db^T, dtc = -Rc db.
void unfold_poses(const float *world_from_link, const float *world_from_camera, int links, const double *pose_sums,
                  double *link_gradient, double *camera_gradient) {
  const float *camera = world_from_camera;
  for (int l = 0; l < links; l++) {
    const float *link = world_from_link + 16 * static_cast<size_t>(l);
    const double *by_turn = pose_sums + static_cast<size_t>(l) * POSE_SUMS, *by_shift = by_turn + 9;
    double *by_link = link_gradient + 16 * static_cast<size_t>(l);
    for (int i = 0; i < 3; i++) {
      double shift = 0;
      for (int k = 0; k < 3; k++) shift += camera[4 * i + k] * by_shift[k];
      by_link[4 * i + 3] += shift;
      camera_gradient[4 * i + 3] -= shift;
      for (int j = 0; j < 3; j++) {
        double turn = 0, turn_camera = (double(link[4 * i + 3]) - camera[4 * i + 3]) * by_shift[j];
        for (int k = 0; k < 3; k++) {
          turn += camera[4 * i + k] * by_turn[3 * k + j];
          turn_camera += link[4 * i + k] * by_turn[3 * j + k];
        }
        by_link[4 * i + j] += turn;
        camera_gradient[4 * i + j] += turn_camera;
      }
    }
  }
}

}  // namespace gw
