// From the summed gradients of records to those of Gaussians and poses: one chunk of one view.
#pragma once
#include "kernel_backward.h"
#include "kernel_project.h"
#include "splat_vjp.h"

namespace gw {
namespace GW_ISA {

// Sixteen records' sums over their macro tiles, in lanes: EllipseSums, then dL/d(r, g, b, z, flow x, flow y).
struct RecordSums {
  alignas(64) float lane[12][LANES];
  alignas(64) int32_t local[LANES];  // row of the Gaussian within the chunk; lanes without a record repeat the first
};

inline void sum_record(const Frame &frame, const GradientRow *rows, uint32_t record, int lane, RecordSums &sums) {
  const TileRect rect = frame.places[record].rect;
  const Record &n = frame.records[record];
  EllipseSums<float> total = {0, 0, 0, 0, 0, 0};
  float channels[6] = {0, 0, 0, 0, 0, 0};
  const GradientRow *row = rows + frame.chunk_slots[record / CHUNK] + frame.places[record].slot;
  for (int y = rect.y0 / MACRO; y <= rect.y1 / MACRO; y++)
    for (int x = rect.x0 / MACRO; x <= rect.x1 / MACRO; x++, row++) {
      const float dx = (x + 0.5f) * MACRO * TILE - n.x, dy = (y + 0.5f) * MACRO * TILE - n.y;
      const float *g = row->lane;
      const EllipseSums<float> s = ellipse_sums(n.ux, n.uy, n.vy, fma_(n.ux, dx, n.uy * dy), n.vy * dy, g[0], g[2], g[4], g[6], g[8], g[10]);
      total = {total.one + s.one, total.u + s.u, total.v + s.v, total.uu + s.uu, total.uv + s.uv, total.vv + s.vv};
      for (int c = 0; c < 6; c++) channels[c] += g[2 * c + 1];
    }
  const float all[6] = {total.one, total.u, total.v, total.uu, total.uv, total.vv};
  for (int c = 0; c < 6; c++) {
    sums.lane[c][lane] = all[c];
    sums.lane[6 + c][lane] = c > 2 ? channels[c] : ((&n.r)[c] > 0.0f ? channels[c] : 0.0f);  // colours clamped at 0
  }
  sums.local[lane] = static_cast<int32_t>(n.id % CHUNK);
}

// Adds lanes of `values` to rows of an [N, width] array; what overflowed adds nothing.
GW_INLINE void add_rows(float *out, int width, const vf *values, int64_t base, const int32_t local[LANES], int count) {
  if (!out) return;
  alignas(64) float lanes[4][LANES];
  for (int c = 0; c < width; c++) store_(lanes[c], zero_unless_(abs_(values[c]) <= vf(3e38f), values[c]));
  for (int i = 0; i < count; i++)
    for (int c = 0; c < width; c++) out[(base + local[i]) * width + c] += lanes[c][i];
}

// r g b r g b ... in three vectors.
GW_INLINE void repeat_rgb(float r, float g, float b, vf out[SH_VECTORS]) {
  constexpr uint32_t thirds_of[3] = {0x9249, 0x2492, 0x4924};
  for (int j = 0; j < SH_VECTORS; j++) {
    const vm is_r = mask_from_bits_(thirds_of[(3 - j) % 3]), is_g = mask_from_bits_(thirds_of[(4 - j) % 3]);
    out[j] = select_(is_r, vf(r), select_(is_g, vf(g), vf(b)));
  }
}

// Gradient by the coefficients (added to `out` if not null) and by the view direction's basis.
inline void sh_lanes_vjp(const gw_scene &scene, float *out, int64_t base, const int32_t local[LANES], int count,
                         const Vec3<vf> &direction, const RecordSums &sums, vf *basis_gradient) {
  const int width = 3 * scene.sh_count;
  vf basis[LANES], products[SH_VECTORS][LANES], column[SH_VECTORS * LANES];
  basis_of_lanes(direction, scene.sh_count, basis);
  for (int j = 0; j * LANES < width; j++)
    for (int i = count; i < LANES; i++) products[j][i] = vf(0.0f);
  for (int i = 0; i < count; i++) {
    vf g[SH_VECTORS];
    repeat_rgb(sums.lane[6][i], sums.lane[7][i], sums.lane[8][i], g);
    const float *sh = scene.sh + (base + local[i]) * width;
    float *row = out ? out + (base + local[i]) * width : nullptr;
    for (int j = 0; j * LANES < width; j++) {
      const int lanes = lanes_left(width - j * LANES);
      products[j][i] = load_first_(sh + j * LANES, lanes) * g[j];
      if (!row) continue;
      const vf by_coefficient = lookup_(basis[i], thirds.of + j * LANES) * g[j];
      store_first_(row + j * LANES, lanes, load_first_(row + j * LANES, lanes) + by_coefficient);
    }
  }
  for (int j = 0; j * LANES < width; j++) transpose_(products[j], column + j * LANES);
  for (int k = 0; k < scene.sh_count; k++) basis_gradient[k] = column[3 * k] + column[3 * k + 1] + column[3 * k + 2];
}

// Adds 12 sums per link: the pose's rows and shift, or with offset 12 those of the previous pose.
GW_INLINE void add_pose(double *sums, int offset, const int32_t links[LANES], bool same, int count, const PoseGradient<vf> &g) {
  if (!sums) return;
  const vf all[12] = {g.row[0].x, g.row[0].y, g.row[0].z, g.row[1].x, g.row[1].y, g.row[1].z,
                      g.row[2].x, g.row[2].y, g.row[2].z, g.shift[0],  g.shift[1],  g.shift[2]};
  const vm used = mask_from_bits_((1u << count) - 1);
  alignas(64) float lanes[LANES];
  for (int c = 0; c < 12; c++) {
    const vf value = zero_unless_(used & (abs_(all[c]) <= vf(3e38f)), all[c]);
    if (same) {
      sums[links[0] * POSE_SUMS + offset + c] += sum_(value);
      continue;
    }
    store_(lanes, value);
    for (int i = 0; i < count; i++) sums[links[i] * POSE_SUMS + offset + c] += lanes[i];
  }
}

GW_INLINE PoseGradient<vf> no_pose_gradient() {
  const vf zero(0.0f);
  const Vec3<vf> none = {zero, zero, zero};
  return {{none, none, none}, {zero, zero, zero}};
}

// Gradient through the previous state's pixel position, which flow subtracts; by the mean (returned) and pose.
inline Vec3<vf> previous_vjp(const ViewSetup &view, const Vec3<vf> &mean, const int32_t links[LANES], bool same, int count,
                             vf &flow_x, vf &flow_y, double *pose_sums) {
  const Pose<vf> pose = load_pose(view.previous_poses, links, same);
  const Pinhole<vf> camera = pinhole<vf>(view.previous_intrinsics, view.width, view.height);
  const Vec3<vf> centre = move_point(pose, mean);
  const vm front = centre.z > vf(view.near_plane);
  flow_x = zero_unless_(front, flow_x);
  flow_y = zero_unless_(front, flow_y);
  const vf inverse_z = zero_unless_(front, vf(1.0f) / centre.z);
  const Vec3<vf> g = pixel_vjp(centre, inverse_z, camera.fx, camera.fy, -flow_x, -flow_y);
  PoseGradient<vf> by_pose = no_pose_gradient();
  const Vec3<vf> by_mean = move_point_vjp(pose, mean, g, by_pose);
  add_pose(pose_sums, 12, links, same, count, by_pose);
  return by_mean;
}

inline void records_vjp(const gw_scene &scene, const float *columns, const ViewSetup &view, const gw_gradients &out,
                        double *pose_sums, int64_t base, const RecordSums &sums, int count) {
  const int32_t *local = sums.local;
  alignas(64) int32_t links[LANES];
  int32_t differ = 0;
  for (int i = 0; i < LANES; i++) differ |= (links[i] = scene.links[base + local[i]]) ^ links[0];
  const bool same = differ == 0;
  vf column[Columns::COUNT];
  for (int k = 0; k < Columns::COUNT; k++) column[k] = gather_(columns + k * CHUNK, local, 1);
  const Vec3<vf> mean = {column[0], column[1], column[2]};
  const Axes<vf> axes = axes_from(column);
  const Pose<vf> pose = load_pose(view.poses, links, same);
  const Pinhole<vf> camera = pinhole<vf>(view.intrinsics, view.width, view.height);
  const Projected<vf> p = project(mean, axes, pose, camera);
  const EllipseSums<vf> e = {load_(sums.lane[0]), load_(sums.lane[1]), load_(sums.lane[2]), load_(sums.lane[3]), load_(sums.lane[4]), load_(sums.lane[5])};
  const Ellipse<vf> ellipse = ellipse_of(p);
  AxisGradient<vf> g = shape_vjp(p, ellipse, e);
  if (view.antialiased) compensation_vjp(p, e.one, g);
  vf gx = vf(2.0f) * ellipse.ux * e.u, gy = vf(2.0f) * fma_(ellipse.uy, e.u, ellipse.vy * e.v);
  PoseGradient<vf> by_pose = no_pose_gradient();
  Vec3<vf> by_mean = {vf(0.0f), vf(0.0f), vf(0.0f)};
  if (view.want_flow) {
    vf flow_x = load_(sums.lane[10]), flow_y = load_(sums.lane[11]);
    by_mean = previous_vjp(view, mean, links, same, count, flow_x, flow_y, pose_sums);
    gx += flow_x;
    gy += flow_y;
  }
  vf inverse_length, basis_gradient[MOST_SH];
  const Vec3<vf> direction = view_direction(pose, p.centre, inverse_length);
  sh_lanes_vjp(scene, out.sh, base, local, count, direction, sums, basis_gradient);
  Axes<vf> by_axes;
  Vec3<vf> by_centre = project_vjp(p, axes, pose, camera, g, gx, gy, load_(sums.lane[9]), by_axes, by_pose);
  if (scene.sh_count > 1) {  // the direction is turn_back(pose, centre), normalised
    const Vec3<vf> d = unit_vjp(direction, inverse_length, sh_basis_vjp(direction, scene.sh_count, basis_gradient));
    const vf centre[3] = {p.centre.x, p.centre.y, p.centre.z};
    for (int i = 0; i < 3; i++) by_pose.row[i] = plus(by_pose.row[i], d, centre[i]);
    by_centre = {by_centre.x + dot(pose.row[0], d), by_centre.y + dot(pose.row[1], d), by_centre.z + dot(pose.row[2], d)};
  }
  by_mean = plus(move_point_vjp(pose, mean, by_centre, by_pose), by_mean, vf(1.0f));
  add_pose(pose_sums, 0, links, same, count, by_pose);
  vf quat[4], by_quat[4];
  for (int k = 0; k < 4; k++) quat[k] = gather_(scene.quats + 4 * base + k, local, 4);
  axes_vjp(quat, axes, by_axes, by_quat);
  const vf by_logit = e.one * vf(LOG2_E) * (vf(1.0f) - exp2_(column[12]));
  const vf means[3] = {by_mean.x, by_mean.y, by_mean.z};
  add_rows(out.means, 3, means, base, local, count);
  add_rows(out.quats, 4, by_quat, base, local, count);
  add_rows(out.log_scales, 3, g.by_length, base, local, count);
  add_rows(out.opacity_logits, 1, &by_logit, base, local, count);
}

inline void project_backward_chunk(const gw_scene &scene, const Columns &columns, const ViewSetup &view, const Frame &frame,
                                   const GradientRow *rows, const gw_gradients &out, double *pose_sums, int chunk) {
  const int64_t base = chunk * int64_t(CHUNK);
  const int total = static_cast<int>(frame.chunk_count[chunk]);
  if (!total) return;
  ChunkColumns scratch;
  const float *own = columns_of(scene, columns, chunk, scratch);
  for (int at = 0; at < total; at += LANES) {
    const int count = total - at < LANES ? total - at : LANES;
    RecordSums sums = {};
    for (int i = 0; i < count; i++) prefetch_coefficients(scene, frame.records[base + at + i].id, out.sh);
    for (int i = 0; i < count; i++) sum_record(frame, rows, static_cast<uint32_t>(base + at + i), i, sums);
    for (int i = count; i < LANES; i++) sums.local[i] = sums.local[0];
    records_vjp(scene, own, view, out, pose_sums, base, sums, count);
  }
}

}  // namespace GW_ISA
}  // namespace gw
