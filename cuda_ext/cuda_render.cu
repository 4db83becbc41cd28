// The CUDA renderer's C interface: the steps of a call in their order.
#include "cuda_blend.h"
#include "cuda_gradient.h"
#include "cuda_machine.h"
#include "cuda_project.h"

#if !defined(GW_VERSION)
#define GW_VERSION "0"
#endif

namespace gw {
namespace cuda {
namespace {

bool valid(const gw_cuda_plan &plan) {
  const gw_scene &scene = plan.scene;
  const gw_views &views = plan.views;
  if (scene.count < 0 || scene.link_count < 1) return false;
  if (scene.sh_count != 1 && scene.sh_count != 4 && scene.sh_count != 9 && scene.sh_count != 16) return false;
  if (scene.count && !(scene.means && scene.quats && scene.log_scales && scene.opacity_logits && scene.sh && scene.links))
    return false;
  if (views.worlds < 1 || views.cameras < 1 || views.width < 1 || views.height < 1) return false;
  if (views.width > 1 << 16 || views.height > 1 << 16) return false;
  if (!(views.near_plane > 0.0f) || !(views.far_plane > views.near_plane)) return false;
  if (!views.world_from_link || !views.world_from_camera || !views.intrinsics) return false;
  if (!plan.images.flow) return true;
  return views.previous_world_from_link && views.previous_world_from_camera && views.previous_intrinsics;
}

// Whether indices and launch grids can hold the views; checked before anything is computed from their number.
bool fits(const gw_cuda_plan &plan) {
  const int64_t views = static_cast<int64_t>(plan.views.worlds) * plan.views.cameras;
  const int64_t tiles = static_cast<int64_t>((plan.views.width + TILE - 1) / TILE) * ((plan.views.height + TILE - 1) / TILE);
  return views <= MOST / tiles && views <= MOST / plan.scene.link_count && plan.scene.count <= MOST &&
         (plan.scene.count == 0 || views <= MOST / plan.scene.count);
}

bool aligned(const float *data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

Call call_of(const gw_cuda_plan &plan, int64_t pairs) {
  Call call = {};
  call.scene = plan.scene;
  call.views = plan.views;
  call.images = plan.images;
  call.view_count = plan.views.worlds * plan.views.cameras;
  call.tiles_x = (plan.views.width + TILE - 1) / TILE;
  call.tiles_y = (plan.views.height + TILE - 1) / TILE;
  call.tile_count = call.tiles_x * call.tiles_y;
  call.splat_count = call.view_count * plan.scene.count;
  call.pair_count = pairs;
  call.want_flow = plan.images.flow != nullptr;
  call.slotted = plan.tape && !plan.fast;
  call.wide_sh = plan.scene.sh_count % 4 == 0 && aligned(plan.scene.sh);
  call.near_bits = float_bits(plan.views.near_plane);
  call.depth_bits = bit_width(float_bits(plan.views.far_plane) - call.near_bits);
  call.key_bits = call.depth_bits + bit_width(static_cast<uint64_t>(call.view_count) * call.tile_count);
  return call;
}

size_t carve_project(Call &call, Machine &machine, void *memory) {
  Carver carver{static_cast<char *>(memory)};
  carver.take(call.tile_counts, call.splat_count + 1);
  size_t bytes = 0;
  machine.scan(nullptr, bytes, call.tile_counts, call.offsets, call.splat_count + 1);
  carver.take_temporary(call, bytes);
  return carver.used + 256;
}

size_t carve_draw(Call &call, Machine &machine, void *memory) {
  Carver carver{static_cast<char *>(memory)};
  carver.take(call.keys_in, call.pair_count);
  carver.take(call.keys, call.pair_count);
  carver.take(call.payload, call.pair_count);
  if (call.slotted) carver.take(call.owners, call.pair_count);
  size_t bytes = 0;
  machine.sort(nullptr, bytes, call.keys_in, call.keys, call.payload, call.list, call.pair_count, call.key_bits);
  carver.take_temporary(call, bytes);
  return carver.used + 256;
}

size_t carve_backward(Call &call, Machine &machine, void *memory, bool poses) {
  Carver carver{static_cast<char *>(memory)};
  carver.take(call.rows, call.slotted ? call.pair_count : call.splat_count);
  carver.take(call.long_count, 1);
  carver.take(call.long_splats, call.slotted ? call.pair_count / LONG : 0);
  if (poses) {
    const int64_t links = call.scene.link_count, views = call.view_count;
    for (uint32_t **column : {&call.link_keys_in, &call.link_keys, &call.rank_in, &call.rank})
      carver.take(*column, call.scene.count);
    carver.take(call.link_ranges, links);
    carver.take(call.pose_parts, views * (pieces_of(call) + links) * POSE_SUMS);
    carver.take(call.pose_sums, views * links * POSE_SUMS);
    size_t bytes = 0;
    machine.sort(nullptr, bytes, call.link_keys_in, call.link_keys, call.rank_in, call.rank, call.scene.count, 32);
    carver.take_temporary(call, bytes);
  }
  return carver.used + 256;
}

// Starts the instance that draws just what is wanted.
template <int WANT = WANT_RGB + WANT_DEPTH + WANT_FLOW + WANT_LINK>
void blend_tiles(Machine &machine, const Call &call, int want) {
  if (want == WANT) return machine.blocks(static_cast<int64_t>(call.view_count) * call.tile_count, BlendTile<WANT>{call});
  if constexpr (WANT > 0) blend_tiles<WANT - 1>(machine, call, want);
}

void project(Machine &machine, Call &call) {
  machine.each(static_cast<int64_t>(call.view_count) * call.scene.link_count, FoldPoses{call});
  machine.each(call.splat_count + 1, ProjectSplats{call});
  machine.scan(call.temporary, call.temporary_bytes, call.tile_counts, call.offsets, call.splat_count + 1);
}

void draw(Machine &machine, Call &call) {
  machine.zero(call.ranges, static_cast<int64_t>(call.view_count) * call.tile_count + 1);
  if (call.pair_count) {
    machine.each(call.splat_count, EmitPairs{call});
    machine.sort(call.temporary, call.temporary_bytes, call.keys_in, call.keys, call.payload,
                 call.slotted ? call.slots : call.list, call.pair_count, call.key_bits);
    if (call.slotted) machine.each(call.pair_count, OwnSlots{call});
    machine.each(call.pair_count, FindRanges<uint64_t>{call.keys, call.pair_count, call.depth_bits, call.ranges});
  }
  blend_tiles(machine, call, (call.images.rgb ? WANT_RGB : 0) | (call.images.depth ? WANT_DEPTH : 0) |
                                 (call.images.flow ? WANT_FLOW : 0) | (call.images.link_id ? WANT_LINK : 0));
}

void sort_by_link(Machine &machine, Call &call) {
  machine.zero(call.link_ranges, call.scene.link_count);
  machine.each(call.scene.count, KeyLinks{call});
  machine.sort(call.temporary, call.temporary_bytes, call.link_keys_in, call.link_keys, call.rank_in, call.rank,
               call.scene.count, bit_width(static_cast<uint64_t>(call.scene.link_count)));
  machine.each(call.scene.count, FindRanges<uint32_t>{call.link_keys, call.scene.count, 0, call.link_ranges});
}

void poses_back(Machine &machine, Call &call) {
  const gw_views &views = call.views;
  machine.blocks(static_cast<int64_t>(call.view_count) * call.scene.link_count, SumPoseParts{call});
  const PoseTensors states[2] = {
      {views.world_from_link, views.world_from_camera, call.gradients.world_from_link, call.gradients.world_from_camera, 0},
      {views.previous_world_from_link, views.previous_world_from_camera, call.gradients.previous_world_from_link,
       call.gradients.previous_world_from_camera, POSE_SUMS / 2}};
  for (const PoseTensors &poses : states) {
    if (poses.by_links) machine.each(static_cast<int64_t>(views.worlds) * call.scene.link_count, LinksBack{call, poses});
    if (poses.by_cameras) machine.blocks(views.cameras, CamerasBack{call, poses});
  }
}

void backward(Machine &machine, Call &call) {
  const int64_t tiles = static_cast<int64_t>(call.view_count) * call.tile_count;
  machine.zero(call.rows, call.slotted ? call.pair_count : call.splat_count);
  if (call.image_gradients.depth || call.image_gradients.flow) machine.blocks(tiles, BlendTileBack<true>{call});
  else machine.blocks(tiles, BlendTileBack<false>{call});
  if (call.slotted) {
    machine.zero(call.long_count, 1);
    machine.each(call.splat_count, ListLongSplats{call});
    machine.blocks(SumLongSplats::BLOCKS, SumLongSplats{call});
  }
  if (!call.want_poses) return machine.blocks(pieces_of(call), GaussiansBack<false>{call});
  sort_by_link(machine, call);
  machine.blocks(pieces_of(call), GaussiansBack<true>{call});
  poses_back(machine, call);
}

bool wants_poses(const gw_gradients &out) {
  return out.world_from_link || out.world_from_camera || out.previous_world_from_link || out.previous_world_from_camera;
}

}  // namespace
}  // namespace cuda
}  // namespace gw

using namespace gw::cuda;

extern "C" {

GW_API int32_t gw_abi_version(void) { return GW_ABI_VERSION; }
GW_API const char *gw_version(void) { return GW_VERSION; }

GW_API int32_t gw_cuda_device_count(int32_t *count) {
  if (!count) return GW_BAD_ARGUMENT;
  return count_devices(*count);
}

GW_API const char *gw_cuda_error(int32_t status) {
  switch (status) {
    case GW_OK: return "ok";
    case GW_BAD_ARGUMENT: return "shapes, planes or pointers do not fit together";
    case GW_TOO_MANY: return "too many views, Gaussians or covered tiles for one call";
  }
  return status > GW_CUDA_ERROR ? error_text(status) : "unknown";
}

GW_API int32_t gw_cuda_sizes(const gw_cuda_plan *plan, int64_t pairs, gw_cuda_bytes *bytes) {
  if (!plan || !bytes || !valid(*plan) || pairs < 0) return GW_BAD_ARGUMENT;
  if (!fits(*plan) || pairs > MOST) return GW_TOO_MANY;
  Call call = call_of(*plan, pairs);
  Machine machine(nullptr);
  bytes->state = static_cast<int64_t>(carve_state(call, nullptr));
  bytes->lists = static_cast<int64_t>(carve_lists(call, nullptr));
  bytes->project = static_cast<int64_t>(carve_project(call, machine, nullptr));
  bytes->draw = static_cast<int64_t>(carve_draw(call, machine, nullptr));
  bytes->backward = static_cast<int64_t>(carve_backward(call, machine, nullptr, true));
  return machine.status();
}

GW_API int32_t gw_cuda_project(const gw_cuda_plan *plan, void *state, void *scratch, void *stream, int64_t *pairs) {
  if (!plan || !state || !scratch || !pairs || !valid(*plan)) return GW_BAD_ARGUMENT;
  if (!fits(*plan)) return GW_TOO_MANY;
  Call call = call_of(*plan, 0);
  Machine machine(stream);
  carve_state(call, state);
  carve_project(call, machine, scratch);
  project(machine, call);
  *pairs = machine.read(call.offsets + call.splat_count);
  if (machine.status() == GW_OK && *pairs > MOST) return GW_TOO_MANY;
  return machine.status();
}

GW_API int32_t gw_cuda_draw(const gw_cuda_plan *plan, int64_t pairs, void *state, void *lists, void *scratch, void *stream) {
  if (!plan || !state || !lists || !scratch || pairs < 0 || !valid(*plan)) return GW_BAD_ARGUMENT;
  if (!fits(*plan) || pairs > MOST) return GW_TOO_MANY;
  Call call = call_of(*plan, pairs);
  Machine machine(stream);
  carve_state(call, state);
  carve_lists(call, lists);
  carve_draw(call, machine, scratch);
  draw(machine, call);
  return machine.status();
}

GW_API int32_t gw_cuda_backward(const gw_cuda_plan *plan, int64_t pairs, void *state, void *lists, void *scratch,
                                void *stream, const gw_images *image_gradients, const gw_gradients *gradients) {
  if (!plan || !state || !lists || !scratch || !image_gradients || !gradients || pairs < 0) return GW_BAD_ARGUMENT;
  if (!valid(*plan) || !plan->tape || !plan->images.alpha) return GW_BAD_ARGUMENT;
  if ((image_gradients->rgb && !plan->images.rgb) || (image_gradients->depth && !plan->images.depth) ||
      (image_gradients->flow && !plan->images.flow))
    return GW_BAD_ARGUMENT;
  if (!fits(*plan) || pairs > MOST) return GW_TOO_MANY;
  Call call = call_of(*plan, pairs);
  call.image_gradients = *image_gradients;
  call.gradients = *gradients;
  call.want_poses = wants_poses(*gradients);
  call.wide_sh = call.wide_sh && aligned(gradients->sh);
  Machine machine(stream);
  carve_state(call, state);
  carve_lists(call, lists);
  carve_backward(call, machine, scratch, call.want_poses);
  backward(machine, call);
  return machine.status();
}

}  // extern "C"
