// Projection kernels: the view-independent columns, and a chunk of Gaussians in one view.
#pragma once
#include "frame.h"
#include "simd_part.h"
#include "splat_sh.h"

namespace gw {
namespace GW_ISA {

// Sixteen rows of an [N, WIDTH] array from row `at` on; past the end the last row is read again.
template <int WIDTH>
struct Rows {
  alignas(64) float padded[LANES * WIDTH];
  const float *data;
  Rows(const float *array, int64_t at, int64_t count) : data(array + at * WIDTH) {
    if (at + LANES <= count) return;
    for (int i = 0; i < LANES; i++)
      for (int k = 0; k < WIDTH; k++) padded[i * WIDTH + k] = array[(at + i < count ? at + i : count - 1) * WIDTH + k];
    data = padded;
  }
};

GW_INLINE vm sound(vf x) { return abs_(x) <= vf(LARGEST); }  // false for NaN

inline void prepare_chunk(const gw_scene &scene, int chunk, float *columns) {
  const int64_t begin = chunk * int64_t(CHUNK), end = begin + CHUNK < scene.count ? begin + CHUNK : scene.count;
  for (int64_t at = begin; at < end; at += LANES) {
    float *out = columns + (at - begin);
    vf mean[3], quat[4], log_scale[3], scale[3];
    split3_(Rows<3>(scene.means, at, scene.count).data, mean);
    split4_(Rows<4>(scene.quats, at, scene.count).data, quat);
    split3_(Rows<3>(scene.log_scales, at, scene.count).data, log_scale);
    const vf logit = load_(Rows<1>(scene.opacity_logits, at, scene.count).data);
    vm good = sound(logit) & (logit >= vf(MIN_LOGIT));
    for (int k = 0; k < 4; k++) good = good & sound(quat[k]);
    for (int k = 0; k < 3; k++) {
      scale[k] = exp_(log_scale[k]);
      good = good & sound(mean[k]) & sound(log_scale[k]) & (scale[k] <= vf(LARGEST));
    }
    const vf norm = sqrt_(fma_(quat[3], quat[3], fma_(quat[2], quat[2], fma_(quat[1], quat[1], quat[0] * quat[0]))));
    good = good & (norm >= vf(1.0f / LARGEST)) & (norm <= vf(LARGEST));
    const vf inverse = vf(1.0f) / norm;
    const Axes<vf> axes = scaled_axes(
        rotation_columns(quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse),
        Vec3<vf>{scale[0], scale[1], scale[2]});
    for (int k = 0; k < 3; k++) {
      store_(out + k * CHUNK, mean[k]);
      store_(out + (3 + 3 * k) * CHUNK, axes.column[k].x);
      store_(out + (4 + 3 * k) * CHUNK, axes.column[k].y);
      store_(out + (5 + 3 * k) * CHUNK, axes.column[k].z);
    }
    store_(out + 12 * CHUNK, select_(good, max_(log2_sigmoid(logit), vf(MIN_LOG2_ALPHA)), vf(-1e30f)));
  }
}

// The chunk's columns: those of the call, or freshly prepared ones.
GW_INLINE const float *columns_of(const gw_scene &scene, const Columns &columns, int chunk, ChunkColumns &scratch) {
  if (columns.data) return columns.of(chunk);
  prepare_chunk(scene, chunk, scratch.value[0]);
  return scratch.value[0];
}
GW_INLINE Axes<vf> axes_from(const vf column[Columns::COUNT]) {
  return {{{column[3], column[4], column[5]}, {column[6], column[7], column[8]}, {column[9], column[10], column[11]}}};
}

// The poses of sixteen Gaussians: broadcast when they share a link, else gathered.
GW_INLINE Pose<vf> load_pose(const LinkPose *poses, const int32_t links[LANES], bool same) {
  Pose<vf> pose;
  const float *all = reinterpret_cast<const float *>(poses), *first = all + 12 * static_cast<size_t>(links[0]);
  vf value[12];
  for (int k = 0; k < 12; k++) value[k] = same ? vf(first[k]) : gather_(all + k, links, 12);
  for (int k = 0; k < 3; k++) {
    pose.row[k] = {value[3 * k], value[3 * k + 1], value[3 * k + 2]};
    pose.shift[k] = value[9 + k];
  }
  return pose;
}
static_assert(sizeof(LinkPose) == 12 * sizeof(float), "poses are gathered as twelve floats");

struct Links {
  alignas(64) int32_t of[LANES];
  bool same;
  Links(const gw_scene &scene, int64_t at) {
    int32_t differ = 0;
    for (int i = 0; i < LANES; i++) {
      of[i] = scene.links[at + i < scene.count ? at + i : scene.count - 1];
      differ |= of[i] ^ of[0];
    }
    same = differ == 0;
  }
};

GW_INLINE Vec3<vf> view_direction(const Pose<vf> &pose, const Vec3<vf> &centre, vf &inverse_length) {
  const Vec3<vf> d = turn_back(pose, centre);
  inverse_length = vf(1.0f) / sqrt_(dot(d, d));
  return scaled(d, inverse_length);
}

constexpr int MOST_SH = 16, SH_VECTORS = 3 * MOST_SH / LANES;
struct Thirds {  // 0 0 0 1 1 1 2 2 2 ...
  alignas(64) int32_t of[SH_VECTORS * LANES];
  constexpr Thirds() : of() {
    for (int i = 0; i < SH_VECTORS * LANES; i++) of[i] = i / 3;
  }
};
constexpr Thirds thirds;

// basis[i]: the `count` basis values of lane i's direction, then zeros.
GW_INLINE void basis_of_lanes(const Vec3<vf> &direction, int count, vf basis[LANES]) {
  vf values[MOST_SH];
  sh_basis(direction, count, values);
  for (int k = count; k < MOST_SH; k++) values[k] = vf(0.0f);
  transpose_(values, basis);
}

// Colours of Gaussians that look alike from everywhere, as colour_lanes.
GW_INLINE uint32_t flat_colour_lanes(const gw_scene &scene, int64_t at, uint32_t bits, vf rgb[3]) {
  vm good = mask_from_bits_(bits);
  split3_(Rows<3>(scene.sh, at, scene.count).data, rgb);
  for (int c = 0; c < 3; c++) {
    good = good & sound(rgb[c]);
    rgb[c] = max_(fma_(rgb[c], vf(SH0), vf(0.5f)), vf(0.0f));
  }
  return bits_(good);
}

// Colours of the lanes in `bits` into rgb; returns the lanes whose coefficients are all sound.
inline uint32_t colour_lanes(const gw_scene &scene, int64_t at, const Vec3<vf> &direction, uint32_t bits, vf rgb[3]) {
  if (scene.sh_count == 1) return flat_colour_lanes(scene, at, bits, rgb);
  const int width = 3 * scene.sh_count;
  vf basis[LANES], products[SH_VECTORS][LANES], column[LANES];
  basis_of_lanes(direction, scene.sh_count, basis);
  for (int j = 0; j * LANES < width; j++)
    for (int i = 0; i < LANES; i++) products[j][i] = vf(0.0f);
  uint32_t good = 0;
  for (uint32_t m = bits; m; m &= m - 1) {
    const int lane = __builtin_ctz(m);
    const float *sh = scene.sh + (at + lane) * width;
    uint32_t sound_lanes = 0xffffu;
    for (int j = 0; j * LANES < width; j++) {
      const vf c = load_first_(sh + j * LANES, lanes_left(width - j * LANES));
      sound_lanes &= bits_(sound(c));
      products[j][lane] = c * lookup_(basis[lane], thirds.of + j * LANES);
    }
    good |= static_cast<uint32_t>(sound_lanes == 0xffffu) << lane;
  }
  for (int c = 0; c < 3; c++) rgb[c] = vf(0.5f);
  for (int j = 0; j * LANES < width; j++) {
    transpose_(products[j], column);
    for (int i = 0; i < LANES; i++) rgb[(j * LANES + i) % 3] += column[i];
  }
  for (int c = 0; c < 3; c++) rgb[c] = max_(rgb[c], vf(0.0f));
  return good;
}

// Pixel columns or rows whose centres the extent covers, as floats; the mask says whether any lies in 0..size-1.
GW_INLINE vm pixel_span(vf centre, vf extent, int size, vf &first, vf &last) {
  const vf limit(size - 1.0f);
  first = ceil_(centre - extent - vf(0.5f));
  last = floor_(centre + extent - vf(0.5f));
  const vm any = (first <= last) & (last >= vf(0.0f)) & (first <= limit);
  first = max_(first, vf(0.0f));
  last = min_(last, limit);
  return any;
}

struct Spans {
  alignas(64) int32_t x0[LANES], x1[LANES], y0[LANES], y1[LANES];
};

GW_INLINE vm visible_lanes(const ViewSetup &view, const Projected<vf> &p, vf peak, vm valid, Spans &spans) {
  vm ok = valid & (p.centre.z > vf(view.near_plane)) & (p.centre.z < vf(view.far_plane)) & (peak >= vf(MIN_LOG2_ALPHA));
  ok = ok & (p.a <= vf(MAX_COVARIANCE)) & (p.c <= vf(MAX_COVARIANCE));
  vf x0, x1, y0, y1;
  ok = ok & pixel_span(p.x, half_extent(peak, p.a), view.width, x0, x1);
  ok = ok & pixel_span(p.y, half_extent(peak, p.c), view.height, y0, y1);
  if (!any_(ok)) return ok;
  const vf to_tile(1.0f / TILE);
  store_int_(spans.x0, zero_unless_(ok, x0) * to_tile);
  store_int_(spans.x1, zero_unless_(ok, x1) * to_tile);
  store_int_(spans.y0, zero_unless_(ok, y0) * to_tile);
  store_int_(spans.y1, zero_unless_(ok, y1) * to_tile);
  return ok;
}

GW_INLINE void flow_of(const ViewSetup &view, const Links &links, const Vec3<vf> &mean, const Projected<vf> &p, vf flow[2]) {
  const Pose<vf> pose = load_pose(view.previous_poses, links.of, links.same);
  const Pinhole<vf> camera = pinhole<vf>(view.previous_intrinsics, view.width, view.height);
  const Vec3<vf> before = move_point(pose, mean);
  const vm front = before.z > vf(view.near_plane);
  const vf inverse_z = vf(1.0f) / before.z;
  flow[0] = zero_unless_(front, p.x - fma_(camera.fx, before.x * inverse_z, camera.cx));
  flow[1] = zero_unless_(front, p.y - fma_(camera.fy, before.y * inverse_z, camera.cy));
}

// Writes the lanes in `bits` behind the `count` records that the chunk already has.
inline uint32_t append_records(Frame &frame, size_t base, uint32_t count, uint32_t bits, const vf fields[16],
                               const Spans &spans, uint64_t &slots) {
  vf rows[LANES];
  transpose_(fields, rows);
  for (; bits; bits &= bits - 1, count++) {
    const int lane = __builtin_ctz(bits);
    const size_t at = base + count;
    Record &record = frame.records[at];
    store_(&record.x, rows[lane]);
    memcpy(&frame.keys[at], &record.z, sizeof record.z);
    const int x0 = spans.x0[lane], x1 = spans.x1[lane], y0 = spans.y0[lane], y1 = spans.y1[lane];
    const TileRect rect = {static_cast<uint16_t>(x0), static_cast<uint16_t>(x1), static_cast<uint16_t>(y0), static_cast<uint16_t>(y1)};
    frame.places[at] = {rect, static_cast<uint32_t>(slots), 0};
    slots += static_cast<uint64_t>(x1 / MACRO - x0 / MACRO + 1) * static_cast<uint64_t>(y1 / MACRO - y0 / MACRO + 1);
  }
  return count;
}

// Asks for a Gaussian's coefficients, and for their gradient where it is not null.
GW_INLINE void prefetch_coefficients(const gw_scene &scene, int64_t row, const float *gradient) {
  const int64_t width = 3 * scene.sh_count;
  for (int64_t k = 0; k < width; k += LANES) {
    __builtin_prefetch(scene.sh + row * width + k);
    if (gradient) __builtin_prefetch(gradient + row * width + k, 1);
  }
}

// Sixteen projected Gaussians whose coefficients are on their way from memory.
struct Group {
  vf fields[16];
  Vec3<vf> direction;
  Spans spans;
  int64_t at;
  uint32_t bits;  // lanes that may be seen
};

inline void project_group(const gw_scene &scene, const float *columns, const ViewSetup &view, const Pinhole<vf> &camera,
                          int64_t at, int64_t end, Group &group) {
  const Links links(scene, at);
  const Pose<vf> pose = load_pose(view.poses, links.of, links.same);
  vf column[Columns::COUNT];
  for (int k = 0; k < Columns::COUNT; k++) column[k] = load_(columns + k * CHUNK);
  const Vec3<vf> mean = {column[0], column[1], column[2]};
  const Projected<vf> p = project(mean, axes_from(column), pose, camera);
  vf peak = column[12];
  if (view.antialiased) peak += log2_compensation(p);
  const uint32_t valid = end - at < LANES ? (1u << (end - at)) - 1 : 0xffffu;
  group.at = at;
  group.bits = bits_(visible_lanes(view, p, peak, mask_from_bits_(valid), group.spans));
  if (!group.bits) return;
  for (uint32_t m = group.bits; m; m &= m - 1) prefetch_coefficients(scene, at + __builtin_ctz(m), nullptr);
  vf flow[2] = {vf(0.0f), vf(0.0f)}, inverse_length;
  group.direction = view_direction(pose, p.centre, inverse_length);
  if (view.want_flow) flow_of(view, links, mean, p, flow);
  const Ellipse<vf> e = ellipse_of(p);
  alignas(64) int32_t id[LANES];
  for (int i = 0; i < LANES; i++) id[i] = static_cast<int32_t>(at + i);
  const vf none(0.0f);
  const vf fields[16] = {p.x, p.y, e.ux, e.uy, e.vy, peak, vf(1.0f) / e.ux, e.along_y * half_extent(peak, p.a), none, none, none,
                         p.centre.z, flow[0], flow[1], load_(reinterpret_cast<const float *>(links.of)),
                         load_(reinterpret_cast<const float *>(id))};
  for (int k = 0; k < 16; k++) group.fields[k] = fields[k];
}

// Each group of sixteen is coloured after the next one is projected: meanwhile its coefficients arrive.
inline void project_chunk(const gw_scene &scene, const Columns &columns, const ViewSetup &view, Frame &frame, int chunk) {
  const int64_t begin = chunk * int64_t(CHUNK), end = begin + CHUNK < scene.count ? begin + CHUNK : scene.count;
  const Pinhole<vf> camera = pinhole<vf>(view.intrinsics, view.width, view.height);
  uint32_t count = 0;
  uint64_t slots = 0;
  ChunkColumns scratch;
  const float *own = columns_of(scene, columns, chunk, scratch);
  Group groups[2];
  groups[0].bits = groups[1].bits = 0;
  for (int64_t at = begin; at < end + LANES; at += LANES) {
    Group &next = groups[at / LANES & 1], &ready = groups[~(at / LANES) & 1];
    if (at < end)
      project_group(scene, own + (at - begin), view, camera, at, end, next);
    else
      next.bits = 0;
    if (!ready.bits) continue;
    ready.bits = colour_lanes(scene, ready.at, ready.direction, ready.bits, ready.fields + 8);
    count = append_records(frame, static_cast<size_t>(begin), count, ready.bits, ready.fields, ready.spans, slots);
  }
  frame.chunk_count[chunk] = count;
  frame.chunk_slots[chunk] = slots;
}

}  // namespace GW_ISA
}  // namespace gw
