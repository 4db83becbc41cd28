// From Gaussians to splats and (tile, splat) pairs: what one thread does.
#pragma once
#include "cuda_call.h"
#if defined(__CUDACC__)
#define constexpr __device__ constexpr  // device code reads the elements of an array only if it is a device's
#include "splat_sh.h"
#undef constexpr
#else
#include "splat_sh.h"
#endif

namespace gw {
namespace cuda {

GW_HD bool sound(float x) { return abs_(x) <= LARGEST; }  // false for NaN

// What of a Gaussian does not depend on the view.
struct Shape {
  Vec3<float> mean;
  float quat[4];
  Axes<float> axes;
  float peak;  // log2 of the opacity
};
GW_DEVICE bool load_shape(const gw_scene &scene, int64_t n, Shape &s) {
  const float *mean = scene.means + 3 * n, *quat = scene.quats + 4 * n, *log_scale = scene.log_scales + 3 * n;
  const float logit = scene.opacity_logits[n];
  bool good = sound(logit) && logit >= MIN_LOGIT;
  float scale[3];
  for (int k = 0; k < 3; k++) {
    scale[k] = exp_(log_scale[k]);
    good = good && sound(mean[k]) && sound(log_scale[k]) && scale[k] <= LARGEST;
  }
  for (int k = 0; k < 4; k++) good = good && sound(s.quat[k] = quat[k]);
  const float norm = sqrt_(fma_(quat[3], quat[3], fma_(quat[2], quat[2], fma_(quat[1], quat[1], quat[0] * quat[0]))));
  good = good && norm >= 1.0f / LARGEST && norm <= LARGEST;
  const float inverse = 1.0f / norm;
  s.mean = {mean[0], mean[1], mean[2]};
  s.axes = scaled_axes(rotation_columns(quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse),
                       Vec3<float>{scale[0], scale[1], scale[2]});
  s.peak = max_(log2_sigmoid(logit), MIN_LOG2_ALPHA);
  return good;
}

GW_DEVICE Pose<float> load_pose(const LinkPose &from) {
  Pose<float> pose;
  for (int k = 0; k < 3; k++) {
    pose.row[k] = {from.row[3 * k], from.row[3 * k + 1], from.row[3 * k + 2]};
    pose.shift[k] = from.shift[k];
  }
  return pose;
}
GW_DEVICE Pinhole<float> camera_of(const Call &call, const float *intrinsics, int view) {
  return pinhole<float>(intrinsics + 9 * (view % call.views.cameras), call.views.width, call.views.height);
}
GW_DEVICE Vec3<float> view_direction(const Pose<float> &pose, const Vec3<float> &centre, float &inverse_length) {
  const Vec3<float> d = turn_back(pose, centre);
  inverse_length = 1.0f / sqrt_(dot(d, d));
  return scaled(d, inverse_length);
}

// Four neighbours in a row of `length` coefficients: one access where all rows are so aligned (`wide`).
struct alignas(16) Four {
  float v[4];
};
GW_DEVICE Four load_four(const float *row, int at, int length, bool wide) {
  if (wide) return *reinterpret_cast<const Four *>(row + at);
  Four four = {};
  for (int j = 0; j < 4; j++)
    if (at + j < length) four.v[j] = row[at + j];
  return four;
}
GW_DEVICE void store_four(float *row, int at, int length, bool wide, const Four &four) {
  if (wide) {
    *reinterpret_cast<Four *>(row + at) = four;
    return;
  }
  for (int j = 0; j < 4; j++)
    if (at + j < length) row[at + j] = four.v[j];
}

// The colour at `direction`; false if a coefficient is not sound.
GW_DEVICE bool shade(const Call &call, int64_t n, const Vec3<float> &direction, float rgb[3]) {
  const int length = 3 * call.scene.sh_count;
  const float *sh = call.scene.sh + n * length;
  float basis[16];
  sh_basis(direction, call.scene.sh_count, basis);
  bool good = true;
  for (int c = 0; c < 3; c++) rgb[c] = 0.5f;
  GW_UNROLL for (int at = 0; at < 48; at += 4) {
    if (at >= length) continue;
    const Four four = load_four(sh, at, length, call.wide_sh);
    for (int j = 0; j < 4; j++) {
      const int k = (at + j) / 3, c = (at + j) % 3;
      good = good && sound(four.v[j]);
      if (at + j < length) rgb[c] = fma_(basis[k], four.v[j], rgb[c]);
    }
  }
  for (int c = 0; c < 3; c++) rgb[c] = max_(rgb[c], 0.0f);
  return good;
}

// Pixel position now minus that in the previous state; 0 unless it was in front of the previous camera's near plane.
GW_DEVICE void flow_of(const Call &call, int view, int link, const Vec3<float> &mean, Splat &s) {
  const Pose<float> pose = load_pose(call.previous_poses[static_cast<int64_t>(view) * call.scene.link_count + link]);
  const Pinhole<float> camera = camera_of(call, call.views.previous_intrinsics, view);
  const Vec3<float> before = move_point(pose, mean);
  if (!(before.z > call.views.near_plane)) return;
  const float inverse_z = 1.0f / before.z;
  s.flow_x = s.x - fma_(camera.fx, before.x * inverse_z, camera.cx);
  s.flow_y = s.y - fma_(camera.fy, before.y * inverse_z, camera.cy);
}

// Calls visit(row, first, last) for each row of tiles with those of its columns that the splat's ellipse (alpha >=
// MIN_ALPHA) reaches. Exact: ellipse and row of tiles meet in a convex set, so the columns are an interval, whose ends
// lie at the height of the ellipse's rightmost (`lean` below its centre) and leftmost point, or as near to it as the row.
template <class Visit>
GW_DEVICE void visit_tiles(const Call &call, const Splat &s, Visit visit) {
  const float reach = s.peak - MIN_LOG2_ALPHA + EXTENT_SLACK, radius = sqrt_(reach);
  const float wide = 1.0f / s.ux, slope = s.along_x / s.vy;
  const float lean = radius * slope / (s.vy * sqrt_(fma_(slope, slope, wide * wide)));
  const float bottom = call.views.height - 1.0f, right = call.views.width - 1.0f, tall = radius / s.vy;
  const float slack = 1e-3f + 1e-6f * (abs_(s.x) + abs_(s.y));
  const float first_row = max_(ceilf(s.y - tall - slack - 0.5f), 0.0f);
  const float last_row = min_(floorf(s.y + tall + slack - 0.5f), bottom);
  if (!(first_row <= last_row)) return;
  for (int row = static_cast<int>(first_row) / TILE; row <= static_cast<int>(last_row) / TILE; row++) {
    const float low = max_(row * static_cast<float>(TILE), first_row) + 0.5f - s.y;
    const float high = min_(row * static_cast<float>(TILE) + (TILE - 1.0f), last_row) + 0.5f - s.y;
    const float at_right = min_(max_(lean, low), high), at_left = min_(max_(-lean, low), high);
    const float v_right = s.vy * at_right, v_left = s.vy * at_left;
    const float x_right = fma_(wide, sqrt_(max_(fnma_(v_right, v_right, reach), 0.0f)), s.along_x * at_right);
    const float x_left = fnma_(wide, sqrt_(max_(fnma_(v_left, v_left, reach), 0.0f)), s.along_x * at_left);
    const float give = slack + 1e-6f * (abs_(x_right) + abs_(x_left));
    const float first = max_(ceilf(s.x + x_left - give - 0.5f), 0.0f);
    const float last = min_(floorf(s.x + x_right + give - 0.5f), right);
    if (first <= last) visit(row, static_cast<int>(first) / TILE, static_cast<int>(last) / TILE);
  }
}

// The Gaussian in one view; returns the number of tiles that it reaches, 0 when it is not drawn (`s` is then undefined).
GW_DEVICE uint32_t make_splat(const Call &call, int view, int64_t n, Splat &s) {
  const int link = call.scene.links[n];
  Shape shape;
  if (link < 0 || link >= call.scene.link_count || !load_shape(call.scene, n, shape)) return 0;
  const Pose<float> pose = load_pose(call.poses[static_cast<int64_t>(view) * call.scene.link_count + link]);
  const Projected<float> p = project(shape.mean, shape.axes, pose, camera_of(call, call.views.intrinsics, view));
  s.peak = call.views.antialiased ? shape.peak + log2_compensation(p) : shape.peak;
  // Each condition is false for NaN.
  if (!(p.centre.z > call.views.near_plane && p.centre.z < call.views.far_plane && s.peak >= MIN_LOG2_ALPHA)) return 0;
  if (!(p.a <= MAX_COVARIANCE && p.c <= MAX_COVARIANCE && abs_(p.x) <= 1e30f && abs_(p.y) <= 1e30f)) return 0;
  const Ellipse<float> e = ellipse_of(p);
  s.x = p.x, s.y = p.y, s.z = p.centre.z;
  s.ux = e.ux, s.uy = e.uy, s.vy = e.vy, s.along_x = e.along_x, s.along_y = e.along_y;
  uint32_t tiles = 0;
  visit_tiles(call, s, [&](int, int first, int last) { tiles += static_cast<uint32_t>(last - first + 1); });
  if (!tiles) return 0;
  float rgb[3], inverse_length;
  if (!shade(call, n, view_direction(pose, p.centre, inverse_length), rgb)) return 0;
  s.r = rgb[0], s.g = rgb[1], s.b = rgb[2], s.flow_x = 0.0f, s.flow_y = 0.0f, s.link = link;
  if (call.want_flow) flow_of(call, view, link, shape.mean, s);
  return tiles;
}

// camera_from_link of view and link `index`, in double precision until the last step.
GW_DEVICE LinkPose fold_pose(const Call &call, const float *from_links, const float *from_cameras, int64_t index) {
  const int link_count = call.scene.link_count, view = static_cast<int>(index / link_count);
  const int64_t world = view / call.views.cameras, camera = view % call.views.cameras;
  const float *link = from_links + 16 * (world * link_count + index % link_count), *eye = from_cameras + 16 * camera;
  LinkPose pose;
  for (int i = 0; i < 3; i++) {
    double shift = 0;
    for (int k = 0; k < 3; k++) shift += double(eye[4 * k + i]) * (double(link[4 * k + 3]) - eye[4 * k + 3]);
    pose.shift[i] = static_cast<float>(shift);
    for (int j = 0; j < 3; j++) {
      double sum = 0;
      for (int k = 0; k < 3; k++) sum += double(eye[4 * k + i]) * link[4 * k + j];
      pose.row[3 * i + j] = static_cast<float>(sum);
    }
  }
  return pose;
}

// The steps as functors over an index; Machine::each runs one thread per index.
struct FoldPoses {
  Call call;
  GW_DEVICE void operator()(int64_t i) const {
    call.poses[i] = fold_pose(call, call.views.world_from_link, call.views.world_from_camera, i);
    if (call.want_flow)
      call.previous_poses[i] =
          fold_pose(call, call.views.previous_world_from_link, call.views.previous_world_from_camera, i);
  }
};

struct ProjectSplats {
  Call call;
  GW_DEVICE void operator()(int64_t i) const {
    uint32_t tiles = 0;
    if (i < call.splat_count) {
      const uint32_t view = static_cast<uint32_t>(i) / static_cast<uint32_t>(call.scene.count);
      Splat s;
      tiles = make_splat(call, static_cast<int>(view), i - view * call.scene.count, s);
      if (tiles) call.splats[i] = s;
    }
    call.tile_counts[i] = tiles;  // the entry past the last splat is 0: its offset is the sum of all
  }
};

struct EmitPairs {
  Call call;
  GW_DEVICE void operator()(int64_t i) const {
    int64_t at = call.offsets[i];
    const int64_t end = call.offsets[i + 1];
    if (end == at) return;
    const Splat s = call.splats[i];
    const uint64_t depth = float_bits(s.z) - call.near_bits;
    const int64_t view = static_cast<uint32_t>(i) / static_cast<uint32_t>(call.scene.count);
    const auto emit = [&](uint64_t tile) {
      call.keys_in[at] = tile << call.depth_bits | depth;
      call.payload[at] = static_cast<uint32_t>(call.slotted ? at : i);
      if (call.slotted) call.owners[at] = static_cast<uint32_t>(i);
      at++;
    };
    visit_tiles(call, s, [&](int row, int first, int last) {
      for (int column = first; column <= last && at < end; column++)
        emit(view * call.tile_count + row * call.tiles_x + column);
    });
    // Two compilations of visit_tiles may round a bound differently: what was counted too many goes behind all tiles.
    while (at < end) emit(static_cast<uint64_t>(call.view_count) * call.tile_count);
  }
};

// Where each bucket (a key shifted right) begins and ends among sorted keys; the others stay as they are.
template <class Key>
struct FindRanges {
  const Key *keys;
  int64_t count;
  int shift;
  Range *ranges;
  GW_DEVICE void operator()(int64_t i) const {
    const Key here = keys[i] >> shift;
    if (i == 0 || keys[i - 1] >> shift != here) ranges[here].first = static_cast<uint32_t>(i);
    if (i + 1 == count || keys[i + 1] >> shift != here) ranges[here].last = static_cast<uint32_t>(i + 1);
  }
};

struct OwnSlots {  // the list of splats from the sorted slots
  Call call;
  GW_DEVICE void operator()(int64_t i) const { call.list[i] = call.owners[call.slots[i]]; }
};

}  // namespace cuda
}  // namespace gw
