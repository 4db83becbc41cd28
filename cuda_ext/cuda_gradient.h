// From the gradients by splats to those by Gaussians and poses.
//
// A thread owns a Gaussian and adds up its views in order. Gaussians are taken in order of their links, so that a
// block's share of a pose gradient is a sum over a stretch of its threads: stage one writes one part per (block, link in
// it), stage two sums each link's parts, which lie side by side. Everything is added in one fixed order.
#pragma once
#include "cuda_block.h"
#include "cuda_project.h"
#include "splat_vjp.h"

namespace gw {
namespace cuda {

GW_DEVICE float finite_or_zero(float x) { return abs_(x) <= 3e38f ? x : 0.0f; }

struct GaussianSums {
  float mean[3], quat[4], log_scale[3], logit;
};
struct PoseBack {
  PoseGradient<float> now, before;
};

GW_DEVICE bool is_long(const Call &call, int64_t i) { return call.offsets[i + 1] - call.offsets[i] >= LONG; }

// The gradient by splat i: its own row, or the sum of its pairs' rows (which SumLongSplats leaves in the first).
GW_DEVICE SplatRow row_of_splat(const Call &call, int64_t i) {
  if (!call.slotted) return call.rows[i];
  SplatRow total = {};
  const int64_t first = call.offsets[i], last = is_long(call, i) ? first + 1 : call.offsets[i + 1];
  for (int64_t at = first; at < last; at++)
    for (int c = 0; c < 12; c++) total.sum[c] += call.rows[at].sum[c];
  return total;
}

// A large splat's rows are too many for one thread: such splats are listed (in any order) and each gets a block.
struct ListLongSplats {
  Call call;
  GW_DEVICE void operator()(int64_t i) const {
    if (is_long(call, i)) call.long_splats[count_atomically(call.long_count)] = static_cast<uint32_t>(i);
  }
};
struct SumLongSplats {
  Call call;
  static constexpr int RESIDENT = 4, BLOCKS = 1024, GROUPS = 21;  // 21 x 12 threads
  struct Shared {
    float sums[GROUPS][12];
  };
  GW_DEVICE void run(const Block &block, Shared &shared, int64_t index) const {
    for (uint32_t k = static_cast<uint32_t>(index); k < *call.long_count; k += BLOCKS) {
      const int64_t splat = call.long_splats[k], first = call.offsets[splat], last = call.offsets[splat + 1];
      block.each([&](int t) {
        if (t >= 12 * GROUPS) return;
        float sum = 0.0f;
        for (int64_t at = first + t / 12; at < last; at += GROUPS) sum += call.rows[at].sum[t % 12];
        shared.sums[t / 12][t % 12] = sum;
      });
      block.each([&](int t) {
        if (t >= 12) return;
        float sum = 0.0f;
        for (int group = 0; group < GROUPS; group++) sum += shared.sums[group][t];
        call.rows[first].sum[t] = sum;
      });
    }
  }
};

// Adds the gradient by the coefficients to its row of gradients.sh; returns that by the (not normalised) direction.
GW_DEVICE Vec3<float> shade_vjp(const Call &call, int64_t n, const Vec3<float> &direction, float inverse_length,
                                const float by_rgb[3]) {
  const int count = call.scene.sh_count, length = 3 * count;
  const float *sh = call.scene.sh + n * length;
  float *out = call.gradients.sh ? call.gradients.sh + n * length : nullptr;
  float basis[16], by_basis[16] = {};
  sh_basis(direction, count, basis);
  GW_UNROLL for (int at = 0; at < 48; at += 4) {
    if (at >= length) continue;
    const Four four = load_four(sh, at, length, call.wide_sh);
    Four sum = out ? load_four(out, at, length, call.wide_sh) : Four{};
    for (int j = 0; j < 4; j++) {
      const int k = (at + j) / 3, c = (at + j) % 3;
      if (at + j >= length) continue;
      by_basis[k] = fma_(four.v[j], by_rgb[c], by_basis[k]);
      sum.v[j] += finite_or_zero(basis[k] * by_rgb[c]);
    }
    if (out) store_four(out, at, length, call.wide_sh, sum);
  }
  if (count < 4) return {0.0f, 0.0f, 0.0f};
  return unit_vjp(direction, inverse_length, sh_basis_vjp(direction, count, by_basis));
}

// Through the previous state's pixel position, which flow subtracts; by the mean.
GW_DEVICE Vec3<float> previous_vjp(const Call &call, int view, int link, const Vec3<float> &mean, float &flow_x,
                                   float &flow_y, PoseGradient<float> &by_pose) {
  const Pose<float> pose = load_pose(call.previous_poses[static_cast<int64_t>(view) * call.scene.link_count + link]);
  const Pinhole<float> camera = camera_of(call, call.views.previous_intrinsics, view);
  const Vec3<float> centre = move_point(pose, mean);
  if (!(centre.z > call.views.near_plane)) {
    flow_x = flow_y = 0.0f;
    return {0.0f, 0.0f, 0.0f};
  }
  return move_point_vjp(pose, mean, pixel_vjp(centre, 1.0f / centre.z, camera.fx, camera.fy, -flow_x, -flow_y), by_pose);
}

// Adds what one view contributes to Gaussian n, and sets the gradient by the view's poses of its link.
GW_DEVICE void splat_vjp(const Call &call, int view, int64_t n, GaussianSums &sums, PoseBack &by_pose) {
  const int64_t index = static_cast<int64_t>(view) * call.scene.count + n;
  const Splat &splat = call.splats[index];
  const SplatRow row = row_of_splat(call, index);
  const float *g = row.sum;
  Shape shape;
  load_shape(call.scene, n, shape);
  const Pose<float> pose = load_pose(call.poses[static_cast<int64_t>(view) * call.scene.link_count + splat.link]);
  const Pinhole<float> camera = camera_of(call, call.views.intrinsics, view);
  const Projected<float> p = project(shape.mean, shape.axes, pose, camera);
  const Ellipse<float> ellipse = ellipse_of(p);
  const EllipseSums<float> e = {g[0], g[1], g[2], g[3], g[4], g[5]};
  AxisGradient<float> by_axis = shape_vjp(p, ellipse, e);
  if (call.views.antialiased) compensation_vjp(p, e.one, by_axis);
  float gx = 2.0f * ellipse.ux * e.u, gy = 2.0f * fma_(ellipse.uy, e.u, ellipse.vy * e.v);
  Vec3<float> by_mean = {0.0f, 0.0f, 0.0f};
  if (call.image_gradients.flow) {
    float flow_x = g[10], flow_y = g[11];
    by_mean = previous_vjp(call, view, splat.link, shape.mean, flow_x, flow_y, by_pose.before);
    gx += flow_x;
    gy += flow_y;
  }
  Axes<float> by_axes;
  Vec3<float> by_centre = project_vjp(p, shape.axes, pose, camera, by_axis, gx, gy, g[9], by_axes, by_pose.now);
  float inverse_length;
  const Vec3<float> direction = view_direction(pose, p.centre, inverse_length);
  const float by_rgb[3] = {splat.r > 0.0f ? g[6] : 0.0f, splat.g > 0.0f ? g[7] : 0.0f, splat.b > 0.0f ? g[8] : 0.0f};
  const Vec3<float> d = shade_vjp(call, n, direction, inverse_length, by_rgb);  // direction: turn_back(pose, centre)
  by_pose.now.row[0] = plus(by_pose.now.row[0], d, p.centre.x);
  by_pose.now.row[1] = plus(by_pose.now.row[1], d, p.centre.y);
  by_pose.now.row[2] = plus(by_pose.now.row[2], d, p.centre.z);
  by_centre = {by_centre.x + dot(pose.row[0], d), by_centre.y + dot(pose.row[1], d), by_centre.z + dot(pose.row[2], d)};
  by_mean = plus(move_point_vjp(pose, shape.mean, by_centre, by_pose.now), by_mean, 1.0f);
  float by_quat[4];
  axes_vjp(shape.quat, shape.axes, by_axes, by_quat);
  const float means[3] = {by_mean.x, by_mean.y, by_mean.z};
  for (int k = 0; k < 3; k++) sums.mean[k] += finite_or_zero(means[k]);
  for (int k = 0; k < 4; k++) sums.quat[k] += finite_or_zero(by_quat[k]);
  for (int k = 0; k < 3; k++) sums.log_scale[k] += finite_or_zero(by_axis.by_length[k]);
  sums.logit += finite_or_zero(e.one * LOG2_E * (1.0f - exp2_(shape.peak)));
}

struct KeyLinks {  // what Gaussians are sorted by; links that do not exist are never drawn and count as the first
  Call call;
  GW_DEVICE void operator()(int64_t n) const {
    const int32_t link = call.scene.links[n];
    call.link_keys_in[n] = link >= 0 && link < call.scene.link_count ? static_cast<uint32_t>(link) : 0;
    call.rank_in[n] = static_cast<uint32_t>(n);
  }
};

template <bool POSES>
struct GaussiansBack {
  Call call;
  static constexpr int RESIDENT = 2;
  struct Shared {
    float pose[POSE_SUMS][BLOCK + 8];
    float parts[POSE_SUMS][8];
    int32_t link[BLOCK];
  };

  GW_DEVICE void run(const Block &block, Shared &shared, int64_t piece) const {
    const int64_t first = piece * BLOCK;
    const int rows = static_cast<int>(call.scene.count - first < BLOCK ? call.scene.count - first : BLOCK);
    PerThread<GaussianSums> sums;
    PerThread<int64_t> gaussian;
    block.each([&](int t) {
      sums[t] = GaussianSums{};
      gaussian[t] = t >= rows ? -1 : POSES ? static_cast<int64_t>(call.rank[first + t]) : first + t;
      if (POSES && t < rows) shared.link[t] = static_cast<int32_t>(call.link_keys[first + t]);
    });
    for (int view = 0; view < call.view_count; view++) {
      block.each([&](int t) {
        const int64_t n = gaussian[t], index = static_cast<int64_t>(view) * call.scene.count + n;
        PoseBack by_pose = {};
        if (n >= 0 && call.offsets[index + 1] > call.offsets[index]) splat_vjp(call, view, n, sums[t], by_pose);
        if (POSES) store_pose(by_pose, shared, t);
      });
      if (POSES) sum_poses(block, shared, view, piece, rows);
    }
    block.each([&](int t) {
      if (gaussian[t] >= 0) add_sums(sums[t], gaussian[t]);
    });
  }

  static GW_DEVICE void store_pose(const PoseBack &by_pose, Shared &shared, int t) {
    const PoseGradient<float> *each[2] = {&by_pose.now, &by_pose.before};
    GW_UNROLL for (int which = 0; which < 2; which++)
      for (int i = 0; i < 3; i++) {
        const Vec3<float> &row = each[which]->row[i];
        shared.pose[12 * which + 3 * i][t] = finite_or_zero(row.x);
        shared.pose[12 * which + 3 * i + 1][t] = finite_or_zero(row.y);
        shared.pose[12 * which + 3 * i + 2][t] = finite_or_zero(row.z);
        shared.pose[12 * which + 9 + i][t] = finite_or_zero(each[which]->shift[i]);
      }
  }

  // One part per link in the block. (piece + link) grows from part to part, so that a link's parts lie side by side.
  GW_DEVICE void sum_poses(const Block &block, Shared &shared, int view, int64_t piece, int rows) const {
    const int64_t parts = pieces_of(call) + call.scene.link_count;
    for (int begin = 0; begin < rows;) {
      const int32_t link = shared.link[begin];
      int end = begin + 1;
      for (int high = rows; end < high;) {  // the first row of a later link
        const int middle = (end + high) / 2;
        if (shared.link[middle] > link) high = middle;
        else end = middle + 1;
      }
      block.each([&](int t) {
        if (t >= 8 * POSE_SUMS) return;
        float sum = 0.0f;
        for (int row = begin + t % 8; row < end; row += 8) sum += shared.pose[t / 8][row];
        shared.parts[t / 8][t % 8] = sum;
      });
      block.each([&](int t) {
        if (t >= POSE_SUMS) return;
        float sum = 0.0f;
        for (int part = 0; part < 8; part++) sum += shared.parts[t][part];
        call.pose_parts[(view * parts + piece + link) * POSE_SUMS + t] = sum;
      });
      begin = end;
    }
  }

  GW_DEVICE void add_sums(const GaussianSums &sums, int64_t n) const {
    const gw_gradients &out = call.gradients;
    for (int k = 0; k < 3; k++) {
      if (out.means) out.means[3 * n + k] += sums.mean[k];
      if (out.log_scales) out.log_scales[3 * n + k] += sums.log_scale[k];
    }
    for (int k = 0; k < 4; k++)
      if (out.quats) out.quats[4 * n + k] += sums.quat[k];
    if (out.opacity_logits) out.opacity_logits[n] += sums.logit;
  }
};

struct SumPoseParts {  // a block for each (view, link)
  Call call;
  static constexpr int RESIDENT = 4;
  struct Shared {
    double sums[10][POSE_SUMS];
  };
  GW_DEVICE void run(const Block &block, Shared &shared, int64_t index) const {
    const int64_t view = index / call.scene.link_count, link = index % call.scene.link_count;
    const Range range = call.link_ranges[link];
    const int64_t stride = pieces_of(call) + call.scene.link_count;
    const bool any = range.first < range.last;
    const int64_t begin = range.first / BLOCK + link, end = any ? (range.last - 1) / BLOCK + link + 1 : begin;
    block.each([&](int t) {
      if (t >= 10 * POSE_SUMS) return;
      double sum = 0;
      for (int64_t part = begin + t / POSE_SUMS; part < end; part += 10)
        sum += call.pose_parts[(view * stride + part) * POSE_SUMS + t % POSE_SUMS];
      shared.sums[t / POSE_SUMS][t % POSE_SUMS] = sum;
    });
    block.each([&](int t) {
      if (t >= POSE_SUMS) return;
      double sum = 0;
      for (int k = 0; k < 10; k++) sum += shared.sums[k][t];
      call.pose_sums[index * POSE_SUMS + t] = sum;
    });
  }
};

// With camera_from_link = [A | b], A = Rc^T Rl and b = Rc^T (tl - tc): dRl = Rc dA, dtl = Rc db, dRc = Rl dA^T +
// (tl - tc) db^T, dtc = -Rc db.
struct PoseTensors {  // now, or in the previous state
  const float *from_links, *from_cameras;
  float *by_links, *by_cameras;
  int offset;  // of the pose's sums
};
struct LinksBack {  // a thread for each (world, link)
  Call call;
  PoseTensors poses;
  GW_DEVICE void operator()(int64_t index) const {
    const int64_t links = call.scene.link_count, world = index / links, link = index % links;
    double out[12] = {};
    for (int camera = 0; camera < call.views.cameras; camera++) {
      const float *eye = poses.from_cameras + 16 * camera;
      const double *by_turn =
          call.pose_sums + ((world * call.views.cameras + camera) * links + link) * POSE_SUMS + poses.offset;
      for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++) {
          for (int j = 0; j < 3; j++) out[4 * i + j] += eye[4 * i + k] * by_turn[3 * k + j];
          out[4 * i + 3] += eye[4 * i + k] * by_turn[9 + k];
        }
    }
    for (int i = 0; i < 12; i++) poses.by_links[16 * index + i] += static_cast<float>(out[i]);
  }
};
struct CamerasBack {  // a block for each camera; the sum runs over worlds and links
  Call call;
  PoseTensors poses;
  static constexpr int RESIDENT = 2;
  struct Shared {
    double sums[BLOCK][12];
  };
  GW_DEVICE void run(const Block &block, Shared &shared, int64_t camera) const {
    const float *eye = poses.from_cameras + 16 * camera;
    const int64_t links = call.scene.link_count;
    block.each([&](int t) {
      double out[12] = {};
      for (int64_t index = t; index < links * call.views.worlds; index += BLOCK) {
        const float *link = poses.from_links + 16 * index;
        const double *by_turn =
            call.pose_sums + ((index / links * call.views.cameras + camera) * links + index % links) * POSE_SUMS + poses.offset;
        for (int i = 0; i < 3; i++) {
          for (int k = 0; k < 3; k++) out[4 * i + 3] -= eye[4 * i + k] * by_turn[9 + k];
          for (int j = 0; j < 3; j++) {
            out[4 * i + j] += (double(link[4 * i + 3]) - eye[4 * i + 3]) * by_turn[9 + j];
            for (int k = 0; k < 3; k++) out[4 * i + j] += link[4 * i + k] * by_turn[3 * j + k];
          }
        }
      }
      for (int i = 0; i < 12; i++) shared.sums[t][i] = out[i];
    });
    block.each([&](int t) {
      if (t >= 12) return;
      double sum = 0;
      for (int k = 0; k < BLOCK; k++) sum += shared.sums[k][t];
      poses.by_cameras[16 * camera + t] += static_cast<float>(sum);
    });
  }
};

}  // namespace cuda
}  // namespace gw
