#include "cache.h"

#include <algorithm>
#include <cstring>

namespace gw {
namespace {

constexpr size_t FEW = 1 << 14;  // movers that one thread projects and sorts before a second one has woken up

template <class T>
std::vector<T> gather(const T *data, const std::vector<uint32_t> &rows, size_t width) {
  std::vector<T> out(rows.size() * width);
  for (size_t i = 0; i < rows.size(); i++) std::memcpy(out.data() + i * width, data + rows[i] * width, width * sizeof(T));
  return out;
}

// The rows of the links whose `moves` is `wanted`.
void select(const gw_scene &scene, const uint8_t *moves, bool wanted, Selection &out) {
  out.rows.clear();
  for (int64_t i = 0; i < scene.count; i++)
    if ((moves[scene.links[i]] != 0) == wanted) out.rows.push_back(static_cast<uint32_t>(i));
  out.means = gather(scene.means, out.rows, 3);
  out.quats = gather(scene.quats, out.rows, 4);
  out.log_scales = gather(scene.log_scales, out.rows, 3);
  out.opacity_logits = gather(scene.opacity_logits, out.rows, 1);
  out.sh = gather(scene.sh, out.rows, 3 * static_cast<size_t>(scene.sh_count));
  out.links = gather(scene.links, out.rows, 1);
  out.scene = {static_cast<int64_t>(out.rows.size()), scene.sh_count, scene.link_count, out.means.data(), out.quats.data(),
               out.log_scales.data(), out.opacity_logits.data(), out.sh.data(), out.links.data()};
}

// One plane after another: calls copy(from, to, channels) for each picture that both sides have.
template <class Copy>
void each_picture(const ImageView &from, const ImageView &to, const Copy &copy) {
  if (to.rgb) copy(from.rgb, to.rgb, 3);
  if (to.alpha) copy(from.alpha, to.alpha, 1);
  if (to.depth) copy(from.depth, to.depth, 1);
  if (to.flow) copy(from.flow, to.flow, 2);
  if (to.link_id) copy(from.link_id, to.link_id, 1);
}

void make_pictures(const gw_images &asked, size_t pixels, Pictures &out) {
  out.view = {};
  auto plane = [&](auto &buffer, auto *&data, bool wanted, size_t channels) {
    if (!wanted) return;
    buffer.reserve(pixels * channels);
    data = buffer.data;
  };
  plane(out.rgb, out.view.rgb, asked.rgb != nullptr, 3);
  plane(out.alpha, out.view.alpha, asked.alpha != nullptr, 1);
  plane(out.depth, out.view.depth, asked.depth != nullptr, 1);
  plane(out.flow, out.view.flow, asked.flow != nullptr, 2);
  plane(out.link_id, out.view.link_id, asked.link_id != nullptr, 1);
}

uint64_t key_of(const Record &record, const std::vector<uint32_t> &rows) {
  uint32_t depth;
  std::memcpy(&depth, &record.z, sizeof depth);
  return static_cast<uint64_t>(depth) << 32 | rows[record.id];
}

// Keeps a frame's visible records, numbered by depth, and of each tile's list what some pixel may see.
void keep_frame(const Kernels &kernels, const ViewSetup &view, const Frame &frame, const std::vector<uint32_t> &rows, Pool &pool,
                StillView &out) {
  const size_t tiles = static_cast<size_t>(view.tiles_x) * view.tiles_y, entries = frame.tile_start[tiles];
  out.count = frame.visible;
  out.records.reserve(out.count + 1);  // never null
  out.keys.reserve(out.count);
  std::vector<uint32_t> place(rows.size() + CHUNK);
  for (size_t i = 0; i < out.count; i++) {
    const uint32_t record = static_cast<uint32_t>(frame.order[i]);
    out.records[i] = frame.records[record];
    out.keys[i] = key_of(out.records[i], rows);
    place[record] = static_cast<uint32_t>(i);
  }
  std::vector<uint8_t> used(entries);
  pool.run(static_cast<int>(tiles), [&](int tile) {
    kernels.mark(view, tile_list(frame, tile), used.data() + frame.tile_start[tile], tile);
  });
  out.tile_start.reserve(tiles + 1);
  out.lists.reserve(static_cast<size_t>(std::count(used.begin(), used.end(), 1)));
  uint32_t count = 0;
  for (size_t tile = 0; tile < tiles; tile++) {
    out.tile_start[tile] = count;
    for (uint32_t i = frame.tile_start[tile]; i < frame.tile_start[tile + 1]; i++)
      if (used[i]) out.lists[count++] = place[frame.lists[i]];
  }
  out.tile_start[tiles] = count;
}

// For movers first..last-1 in depth order: how many still records lie before each.
void rank_movers(const StillView &still, const std::vector<uint32_t> &rows, const Frame &frame, size_t first, size_t last,
                 uint32_t *ranks) {
  const uint64_t *keys = still.keys.data, *end = keys + still.count, *at = keys;
  for (size_t i = first; i < last; i++) {
    const uint32_t record = static_cast<uint32_t>(frame.order[i]);
    const uint64_t key = key_of(frame.records[record], rows);
    size_t step = i == first ? still.count : 1;  // the next one is seldom far
    while (step < static_cast<size_t>(end - at) && at[step] < key) {
      at += step;
      step *= 2;
    }
    at = std::lower_bound(at, step < static_cast<size_t>(end - at) ? at + step : end, key);
    ranks[record] = static_cast<uint32_t>(at - keys);
  }
}

// Two depth-ordered lists of a tile into one.
void merge_lists(const uint32_t *still, const uint32_t *still_end, const uint32_t *mover, const uint32_t *mover_end,
                 const uint32_t *ranks, uint32_t *out) {
  for (; mover < mover_end; mover++) {
    for (const uint32_t rank = ranks[*mover]; still < still_end && *still < rank;) *out++ = *still++;
    *out++ = *mover | TileList::SECOND;
  }
  std::copy(still, still_end, out);
}

// Copies the background to the tiles of one row where no mover is, with `kept` only where one was; notes where movers are.
void restore_row(const ViewSetup &view, const ImageView &from, const ImageView &to, const uint32_t *starts, bool kept, int row,
                 uint8_t *touched) {
  const int top = row * TILE, bottom = std::min(top + TILE, view.height);
  auto restores = [&](int x) { return starts[x] == starts[x + 1] && (!kept || touched[x]); };
  for (int x = 0; x < view.tiles_x;) {
    const int first = x;
    while (x < view.tiles_x && restores(x)) x++;
    const size_t left = static_cast<size_t>(first) * TILE, right = static_cast<size_t>(std::min(x * TILE, view.width));
    if (x == first) {
      x++;
      continue;
    }
    each_picture(from, to, [&](const auto *source, auto *target, size_t channels) {
      for (int y = top; y < bottom; y++) {
        const size_t at = (static_cast<size_t>(y) * view.width + left) * channels;
        std::memcpy(target + at, source + at, (right - left) * channels * sizeof *target);
      }
    });
  }
  for (int x = 0; x < view.tiles_x; x++) touched[x] = starts[x] != starts[x + 1];
}

}  // namespace

int32_t build_background(const Kernels &kernels, const gw_scene &scene, const uint8_t *moves, const gw_views &views,
                         const gw_images &images, Pool &pool, Background &background) {
  background.width = views.width;
  background.height = views.height;
  select(scene, moves, true, background.movers);
  const int chunks = chunks_of(background.movers.scene.count);
  background.columns.reserve(static_cast<size_t>(chunks) * (Columns::COUNT * CHUNK));
  const Columns columns = {background.columns.data};
  pool.run(chunks, [&](int chunk) { kernels.prepare(background.movers.scene, chunk, columns.of(chunk)); });
  Selection still;
  select(scene, moves, false, still);
  Buffer<LinkPose> poses;
  Frame frame;
  for (int camera = 0; camera < views.cameras; camera++) {
    const ViewSetup view = setup_view(still.scene, views, images, 0, camera, poses);
    const int32_t status = build_frame(kernels, still.scene, Columns(), view, frame, pool);
    if (status != GW_OK) return status;
    auto kept = std::make_unique<StillView>();
    make_pictures(images, static_cast<size_t>(views.width) * views.height, kept->pictures);
    draw_frame(kernels, view, frame, kept->pictures.view, pool);
    keep_frame(kernels, view, frame, still.rows, pool, *kept);
    background.cameras.push_back(std::move(kept));
  }
  return GW_OK;
}

int32_t draw_over(const Kernels &kernels, Background &background, const ViewSetup &view, const ImageView &images, int camera,
                  uint8_t *touched, bool kept, Worker &worker, Pool &pool) {
  const StillView &still = *background.cameras[static_cast<size_t>(camera)];
  const Selection &movers = background.movers;
  Frame &frame = worker.frame;
  Pool &builders = movers.rows.size() < FEW ? worker.alone : pool;
  const int32_t status = build_frame(kernels, movers.scene, Columns{background.columns.data}, view, frame, builders);
  if (status != GW_OK) return status;
  const size_t parts = static_cast<size_t>(builders.threads()), tiles = static_cast<size_t>(view.tiles_x) * view.tiles_y;
  worker.ranks.reserve(static_cast<size_t>(chunks_of(movers.scene.count)) * CHUNK);
  builders.run(static_cast<int>(parts), [&](int part) {
    const size_t at = static_cast<size_t>(part);
    rank_movers(still, movers.rows, frame, frame.visible * at / parts, frame.visible * (at + 1) / parts, worker.ranks.data);
  });
  worker.tiles.reserve(tiles);
  worker.starts.reserve(tiles);
  size_t count = 0, total = 0;
  for (size_t tile = 0; tile < tiles; tile++) {
    const uint32_t moving = frame.tile_start[tile + 1] - frame.tile_start[tile];
    if (!moving) continue;
    worker.tiles[count] = static_cast<uint32_t>(tile);
    worker.starts[count++] = total;
    total += moving + (still.tile_start[tile + 1] - still.tile_start[tile]);
  }
  worker.merged.reserve(total);
  pool.run(static_cast<int>(count) + view.tiles_y, [&](int task) {
    const size_t at = static_cast<size_t>(task);
    if (at >= count) {
      const size_t row = at - count, first = row * static_cast<size_t>(view.tiles_x);
      return restore_row(view, still.pictures.view, images, frame.tile_start.data + first, kept, static_cast<int>(row), touched + first);
    }
    const uint32_t tile = worker.tiles[at], *near = still.tile_start.data + tile, *moving = frame.tile_start.data + tile;
    uint32_t *merged = worker.merged.data + worker.starts[at];
    merge_lists(still.lists.data + near[0], still.lists.data + near[1], frame.lists.data + moving[0], frame.lists.data + moving[1],
                worker.ranks.data, merged);
    const TileList list = {{still.records.data, frame.records.data}, merged, near[1] - near[0] + moving[1] - moving[0]};
    kernels.raster(view, list, images, static_cast<int>(tile));
  });
  return GW_OK;
}

}  // namespace gw
