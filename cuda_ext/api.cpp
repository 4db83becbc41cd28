// The C interface: checks arguments, keeps contexts and tapes, turns exceptions into codes.
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "cache.h"

#if !defined(GW_VERSION)
#define GW_VERSION "0"
#endif

namespace gw {
namespace {

bool can_run(int32_t isa) {
  if (isa == GW_ISA_PORTABLE) return true;
#if defined(GW_HAVE_AVX2)
  if (isa == GW_ISA_AVX2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
#if defined(GW_HAVE_AVX512)
  if (isa == GW_ISA_AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
#endif
  return false;
}

const Kernels &kernels_of(int32_t isa) {
#if defined(GW_HAVE_AVX2)
  if (isa == GW_ISA_AVX2) return kernels_avx2();
#endif
#if defined(GW_HAVE_AVX512)
  if (isa == GW_ISA_AVX512) return kernels_avx512();
#endif
  return kernels_portable();
}

}  // namespace
}  // namespace gw

struct gw_tape {
  std::vector<std::unique_ptr<gw::Frame>> frames;  // [W * C]
};

struct gw_background {
  gw::Background of;
};

struct gw_context {
  gw_context(int threads, int32_t set) : isa(set), kernels(gw::kernels_of(set)), pool(threads) {}
  const int32_t isa;
  const gw::Kernels &kernels;
  gw::Pool pool;
  std::mutex mutex;
  gw::Buffer<float> columns;
  gw::Buffer<gw::LinkPose> poses;
  gw::BackwardScratch scratch;
  gw::Workers workers;
  std::vector<std::unique_ptr<gw::Frame>> spare;

  std::unique_ptr<gw::Frame> take_frame() {
    if (spare.empty()) return std::make_unique<gw::Frame>();
    std::unique_ptr<gw::Frame> frame = std::move(spare.back());
    spare.pop_back();
    return frame;
  }
};

namespace gw {
namespace {

bool valid(const gw_views &views, const gw_images &images) {
  if (views.worlds < 1 || views.cameras < 1 || views.width < 1 || views.height < 1) return false;
  if (views.worlds > INT32_MAX / views.cameras || views.width > 1 << 16 || views.height > 1 << 16) return false;
  if (!(views.near_plane > 0.0f) || !(views.far_plane > views.near_plane)) return false;
  if (!views.world_from_link || !views.world_from_camera || !views.intrinsics) return false;
  return !images.flow || (views.previous_world_from_link && views.previous_world_from_camera && views.previous_intrinsics);
}

bool valid(const gw_scene &scene, const gw_views &views, const gw_images &images) {
  if (scene.count < 0 || scene.count > INT32_MAX - CHUNK || scene.link_count < 1) return false;
  if (scene.sh_count != 1 && scene.sh_count != 4 && scene.sh_count != 9 && scene.sh_count != 16) return false;
  if (scene.count && !(scene.means && scene.quats && scene.log_scales && scene.opacity_logits && scene.sh && scene.links))
    return false;
  for (int64_t i = 0; i < scene.count; i++)
    if (scene.links[i] < 0 || scene.links[i] >= scene.link_count) return false;
  return valid(views, images);
}

ImageView view_of(const gw_images &images, const gw_views &views, size_t index) {
  const size_t pixels = static_cast<size_t>(views.width) * views.height, at = index * pixels;
  return {images.rgb ? images.rgb + 3 * at : nullptr, images.alpha ? images.alpha + at : nullptr,
          images.depth ? images.depth + at : nullptr, images.flow ? images.flow + 2 * at : nullptr,
          images.link_id ? images.link_id + at : nullptr};
}

// Columns for the whole call when several views share them, else none.
Columns prepare(gw_context &context, const gw_scene &scene, const gw_views &views) {
  Columns columns;
  if (int64_t(views.worlds) * views.cameras < 2) return columns;
  const int chunks = chunks_of(scene.count);
  context.columns.reserve(static_cast<size_t>(chunks) * (Columns::COUNT * CHUNK));
  columns.data = context.columns.data;
  context.pool.run(chunks, [&](int chunk) { context.kernels.prepare(scene, chunk, columns.of(chunk)); });
  return columns;
}

// Views on one thread each: with enough of them no thread waits for another. Each then needs a frame of its own.
bool apart(const Pool &pool, const gw_scene &scene, int views) {
  constexpr int64_t MOST = 1 << 23;  // Gaussians in frames at once, about 100 bytes each
  return pool.threads() > 1 && views >= 4 * pool.threads() && scene.count * pool.threads() <= MOST;
}

int32_t render(gw_context &context, const gw_scene &scene, const gw_views &views, const gw_images &images, gw_tape *tape) {
  const Columns columns = prepare(context, scene, views);
  const int count = views.worlds * views.cameras;
  if (tape)
    for (int i = 0; i < count; i++) tape->frames.push_back(context.take_frame());
  return each_view(context.workers, context.pool, count, apart(context.pool, scene, count), [&](Worker &worker, Pool &pool, int i) {
    const ViewSetup view = setup_view(scene, views, images, i / views.cameras, i % views.cameras, worker.poses);
    Frame &frame = tape ? *tape->frames[static_cast<size_t>(i)] : worker.frame;
    const int32_t status = build_frame(context.kernels, scene, columns, view, frame, pool);
    if (status == GW_OK) draw_frame(context.kernels, view, frame, view_of(images, views, static_cast<size_t>(i)), pool);
    return status;
  });
}

bool same_pictures(const ImageView &kept, const gw_images &asked) {
  return !kept.rgb == !asked.rgb && !kept.alpha == !asked.alpha && !kept.depth == !asked.depth && !kept.flow == !asked.flow &&
         !kept.link_id == !asked.link_id;
}

int32_t draw_all_over(gw_context &context, Background &background, const gw_views &views, const gw_images &images, bool kept) {
  const gw_scene &movers = background.movers.scene;
  const int count = views.worlds * views.cameras;
  const size_t tiles = static_cast<size_t>((views.width + TILE - 1) / TILE) * static_cast<size_t>((views.height + TILE - 1) / TILE);
  const bool known = kept && background.touched.size() == tiles * count;
  std::vector<uint8_t> touched(tiles * count);
  if (known) touched.swap(background.touched);
  background.touched.clear();  // until all is drawn
  const int32_t status = each_view(
      context.workers, context.pool, count, apart(context.pool, movers, count), [&](Worker &worker, Pool &pool, int i) {
        const int camera = i % views.cameras;
        const ViewSetup view = setup_view(movers, views, images, i / views.cameras, camera, worker.poses);
        const size_t at = static_cast<size_t>(i);
        return draw_over(context.kernels, background, view, view_of(images, views, at), camera, touched.data() + at * tiles,
                         known, worker, pool);
      });
  if (status == GW_OK) background.touched.swap(touched);
  return status;
}

// Gradients by the matrices of all worlds and cameras.
struct PoseSums {
  std::vector<double> link, camera, previous_link, previous_camera;
};

void store(const std::vector<double> &sums, float *out) {
  if (out)
    for (size_t i = 0; i < sums.size(); i++) out[i] = static_cast<float>(sums[i]);
}

int32_t backward(gw_context &context, const gw_scene &scene, const gw_views &views, const gw_images &images,
                 const gw_images &image_gradients, gw_tape &tape, const gw_gradients &out) {
  const Columns columns = prepare(context, scene, views);
  const size_t links = 16 * static_cast<size_t>(scene.link_count), cameras = 16 * static_cast<size_t>(views.cameras);
  PoseSums sums;
  sums.link.assign(links * views.worlds, 0.0);
  sums.camera.assign(cameras, 0.0);
  sums.previous_link = sums.link;
  sums.previous_camera = sums.camera;
  for (int w = 0; w < views.worlds; w++)
    for (int c = 0; c < views.cameras; c++) {
      const size_t index = static_cast<size_t>(w) * views.cameras + c;
      const ViewSetup view = setup_view(scene, views, image_gradients, w, c, context.poses);
      const double *poses = backward_frame(context.kernels, scene, columns, view, *tape.frames[index],
                                           view_of(images, views, index), view_of(image_gradients, views, index), out, index == 0,
                                           context.scratch, context.pool);
      if (!poses) continue;
      unfold_poses(views.world_from_link + links * w, views.world_from_camera + 16 * c, scene.link_count, poses,
                   sums.link.data() + links * w, sums.camera.data() + 16 * c);
      if (view.want_flow)
        unfold_poses(views.previous_world_from_link + links * w, views.previous_world_from_camera + 16 * c,
                     scene.link_count, poses + POSE_SUMS / 2, sums.previous_link.data() + links * w,
                     sums.previous_camera.data() + 16 * c);
    }
  store(sums.link, out.world_from_link);
  store(sums.camera, out.world_from_camera);
  store(sums.previous_link, out.previous_world_from_link);
  store(sums.previous_camera, out.previous_world_from_camera);
  return GW_OK;
}

}  // namespace
}  // namespace gw

extern "C" {

GW_API int32_t gw_abi_version(void) { return GW_ABI_VERSION; }
GW_API const char *gw_version(void) { return GW_VERSION; }
GW_API int32_t gw_isa_available(int32_t isa) { return isa == GW_ISA_AUTO || gw::can_run(isa) ? 1 : 0; }

GW_API gw_context *gw_context_create(int32_t threads, int32_t isa) {
  if (threads < 1 || threads > 4096 || !gw_isa_available(isa)) return nullptr;
  if (isa == GW_ISA_AUTO)
    for (isa = GW_ISA_AVX512; !gw::can_run(isa);) isa--;
  try {
    return new gw_context(threads, isa);
  } catch (...) {
    return nullptr;
  }
}
GW_API void gw_context_destroy(gw_context *context) { delete context; }
GW_API int32_t gw_context_isa(const gw_context *context) { return context->isa; }

GW_API int32_t gw_render(gw_context *context, const gw_scene *scene, const gw_views *views, const gw_images *images,
                         gw_tape **tape) {
  if (!context || !scene || !views || !images || !gw::valid(*scene, *views, *images)) return GW_BAD_ARGUMENT;
  std::unique_ptr<gw_tape> kept;
  try {
    const std::lock_guard<std::mutex> lock(context->mutex);
    if (tape) kept = std::make_unique<gw_tape>();
    const int32_t status = gw::render(*context, *scene, *views, *images, kept.get());
    if (status == GW_OK && tape) *tape = kept.release();
    return status;
  } catch (...) {
    return GW_OUT_OF_MEMORY;
  }
}

GW_API int32_t gw_backward(gw_context *context, const gw_scene *scene, const gw_views *views, const gw_images *images,
                           const gw_images *image_gradients, gw_tape *tape, const gw_gradients *gradients) {
  if (!context || !scene || !views || !images || !image_gradients || !tape || !gradients) return GW_BAD_ARGUMENT;
  if (!gw::valid(*scene, *views, *image_gradients) || !images->alpha) return GW_BAD_ARGUMENT;
  if (tape->frames.size() != static_cast<size_t>(views->worlds) * static_cast<size_t>(views->cameras)) return GW_BAD_ARGUMENT;
  if ((image_gradients->rgb && !images->rgb) || (image_gradients->depth && !images->depth) ||
      (image_gradients->flow && !images->flow))
    return GW_BAD_ARGUMENT;
  try {
    const std::lock_guard<std::mutex> lock(context->mutex);
    return gw::backward(*context, *scene, *views, *images, *image_gradients, *tape, *gradients);
  } catch (...) {
    return GW_OUT_OF_MEMORY;
  }
}

GW_API int32_t gw_background_build(gw_context *context, const gw_scene *scene, const uint8_t *moves, const gw_views *views,
                                   const gw_images *images, gw_background **background) {
  if (!context || !scene || !moves || !views || !images || !background || !gw::valid(*scene, *views, *images)) return GW_BAD_ARGUMENT;
  try {
    const std::lock_guard<std::mutex> lock(context->mutex);
    auto built = std::make_unique<gw_background>();
    const int32_t status = gw::build_background(context->kernels, *scene, moves, *views, *images, context->pool, built->of);
    if (status == GW_OK) *background = built.release();
    return status;
  } catch (...) {
    return GW_OUT_OF_MEMORY;
  }
}
GW_API void gw_background_destroy(gw_background *background) { delete background; }

GW_API int32_t gw_background_draw(gw_context *context, gw_background *background, const gw_views *views,
                                  const gw_images *images, int32_t kept) {
  if (!context || !background || !views || !images || !gw::valid(*views, *images)) return GW_BAD_ARGUMENT;
  try {
    const std::lock_guard<std::mutex> lock(context->mutex);
    gw::Background &of = background->of;
    if (views->width != of.width || views->height != of.height || static_cast<size_t>(views->cameras) != of.cameras.size() ||
        !gw::same_pictures(of.cameras[0]->pictures.view, *images))
      return GW_BAD_ARGUMENT;
    return gw::draw_all_over(*context, of, *views, *images, kept != 0);
  } catch (...) {
    return GW_OUT_OF_MEMORY;
  }
}

GW_API void gw_tape_release(gw_context *context, gw_tape *tape) {
  if (!tape) return;
  const std::unique_ptr<gw_tape> owned(tape);
  if (!context) return;
  const std::lock_guard<std::mutex> lock(context->mutex);
  try {
    for (auto &frame : owned->frames) context->spare.push_back(std::move(frame));
  } catch (...) {  // the frames that found no place are freed
  }
}

}  // extern "C"
