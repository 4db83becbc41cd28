// The derivatives of splat.h: each takes a gradient by a result and gives the gradient by the arguments.
#pragma once
#include "splat.h"

namespace gw {
namespace GW_ISA {

// Gradient of a unit quaternion's rotation_columns; `g` is by the columns.
template <class F>
GW_HD void rotation_columns_vjp(F w, F x, F y, F z, const Axes<F> &g, F out[4]) {
  const Vec3<F> &a = g.column[0], &b = g.column[1], &c = g.column[2];
  const F two(2.0f);
  out[0] = two * (z * (a.y - b.x) + y * (c.x - a.z) + x * (b.z - c.y));
  out[1] = two * (y * (a.y + b.x) + z * (a.z + c.x) + w * (b.z - c.y) - two * x * (b.y + c.z));
  out[2] = two * (x * (a.y + b.x) + z * (b.z + c.y) + w * (c.x - a.z) - two * y * (a.x + c.z));
  out[3] = two * (x * (a.z + c.x) + y * (b.z + c.y) + w * (a.y - b.x) - two * z * (a.x + b.y));
}

// Gradient by q of scaled_axes(rotation_columns(q / |q|), scale).
template <class F>
GW_HD void axes_vjp(const F quat[4], const Axes<F> &axes, const Axes<F> &g, F quat_gradient[4]) {
  const F norm_sq = fma_(quat[3], quat[3], fma_(quat[2], quat[2], fma_(quat[1], quat[1], quat[0] * quat[0])));
  const F inverse = F(1.0f) / sqrt_(norm_sq);
  const F w = quat[0] * inverse, x = quat[1] * inverse, y = quat[2] * inverse, z = quat[3] * inverse;
  Axes<F> by_rotation;
  for (int k = 0; k < 3; k++) by_rotation.column[k] = scaled(g.column[k], sqrt_(dot(axes.column[k], axes.column[k])));
  F unit[4];
  rotation_columns_vjp(w, x, y, z, by_rotation, unit);
  const F along = fma_(z, unit[3], fma_(y, unit[2], fma_(x, unit[1], w * unit[0])));
  quat_gradient[0] = fnma_(w, along, unit[0]) * inverse;
  quat_gradient[1] = fnma_(x, along, unit[1]) * inverse;
  quat_gradient[2] = fnma_(y, along, unit[2]) * inverse;
  quat_gradient[3] = fnma_(z, along, unit[3]) * inverse;
}

// Sums over pixels of g = dL/d(log2 alpha): g, g u, g v, g u^2, g u v, g v^2 (u, v of Ellipse).
template <class F>
struct EllipseSums {
  F one, u, v, uu, uv, vv;
};

// Those sums from the sums of g times 1, X, Y, XX, XY, YY, where u = ux X + uy Y + u0 and v = vy Y + v0: the origin of
// X, Y is near the pixels, so that nothing large cancels even when the Gaussian's centre is far away.
template <class F>
GW_HD EllipseSums<F> ellipse_sums(F ux, F uy, F vy, F u0, F v0, F one, F x, F y, F xx, F xy, F yy) {
  const F linear = fma_(ux, x, uy * y), u = fma_(u0, one, linear), v = fma_(vy, y, v0 * one);
  const F quadratic = fma_(ux * ux, xx, fma_(uy * uy, yy, F(2.0f) * ux * uy * xy));
  return {one, u, v, quadratic + u0 * (linear + u), fma_(vy, fma_(ux, xy, fma_(uy, yy, u0 * y)), v0 * u),
          fma_(vy * vy, yy, v0 * (vy * y + v))};
}

// Gradient by the rows of J A R S (by_x, by_y) and by the logarithms of the axes' lengths (by_length).
template <class F>
struct AxisGradient {
  F by_x[3], by_y[3], by_length[3];
};
// Through the ellipse's shape. With W = [[ux, uy], [0, vy]] the gradient by an axis a is 2 / HALF_LOG2_E W^T S W a, and by
// the log of its length 2 / HALF_LOG2_E (W a)^T S (W a), S being the second moments. W a is at most about one, but its
// first entry is the difference of two large numbers on a needle; from the minors it comes without cancellation:
// c (W a_k)_x / ux = DILATION x_k + sum_l y_l (x_k y_l - y_k x_l).
template <class F>
GW_HD AxisGradient<F> shape_vjp(const Projected<F> &p, const Ellipse<F> &e, const EllipseSums<F> &s) {
  const F *x = p.axis_x, *y = p.axis_y, factor(2.0f / HALF_LOG2_E);
  const F m01 = x[0] * y[1] - x[1] * y[0], m02 = x[0] * y[2] - x[2] * y[0], m12 = x[1] * y[2] - x[2] * y[1];
  const F scale = e.ux / p.c, dilation(DILATION);
  const F whitened[3] = {scale * fma_(dilation, x[0], fma_(y[1], m01, y[2] * m02)),
                         scale * fma_(dilation, x[1], fma_(y[2], m12, F(0.0f) - y[0] * m01)),
                         scale * fma_(dilation, x[2], F(0.0f) - fma_(y[0], m02, y[1] * m12))};
  AxisGradient<F> g;
  for (int k = 0; k < 3; k++) {
    const F u = whitened[k], v = e.vy * y[k];
    const F along_u = factor * fma_(s.uu, u, s.uv * v), along_v = factor * fma_(s.uv, u, s.vv * v);
    g.by_x[k] = e.ux * along_u;
    g.by_y[k] = fma_(e.uy, along_u, e.vy * along_v);
    g.by_length[k] = fma_(u, along_u, v * along_v);
  }
  return g;
}

template <class F>
struct PoseGradient {
  Vec3<F> row[3];
  F shift[3];
};
// Gradient of move_point by the pose added to `out`; the one by the point is returned.
template <class F>
GW_HD Vec3<F> move_point_vjp(const Pose<F> &pose, const Vec3<F> &p, const Vec3<F> &g, PoseGradient<F> &out) {
  const F each[3] = {g.x, g.y, g.z};
  for (int i = 0; i < 3; i++) {
    out.row[i] = plus(out.row[i], p, each[i]);
    out.shift[i] = out.shift[i] + each[i];
  }
  return turn_back(pose, g);
}

// Gradient by the centre of a pixel position f (x/z, y/z) + c.
template <class F>
GW_HD Vec3<F> pixel_vjp(const Vec3<F> &centre, F inverse_z, F fx, F fy, F gx, F gy) {
  const F x = gx * fx * inverse_z, y = gy * fy * inverse_z;
  return {x, y, (F(0.0f) - inverse_z) * fma_(x, centre.x, y * centre.y)};
}

// Adds the gradient through log2_compensation, of which `g` is the gradient.
template <class F>
GW_HD void compensation_vjp(const Projected<F> &p, F g, AxisGradient<F> &out) {
  const F half = g * F(0.5f * LOG2_E), inverse = F(1.0f) / p.det;
  const F trace = half * inverse * F(-2.0f * DILATION);
  const F minor = F(2.0f) * half * (F(1.0f) / p.det_before - inverse);
  const F *x = p.axis_x, *y = p.axis_y;
  const F m01 = x[0] * y[1] - x[1] * y[0], m02 = x[0] * y[2] - x[2] * y[0], m12 = x[1] * y[2] - x[2] * y[1];
  const F g01 = minor * m01, g02 = minor * m02, g12 = minor * m12;
  const F by_x[3] = {g01 * y[1] + g02 * y[2], g12 * y[2] - g01 * y[0], F(0.0f) - g02 * y[0] - g12 * y[1]};
  const F by_y[3] = {F(0.0f) - g01 * x[1] - g02 * x[2], g01 * x[0] - g12 * x[2], g02 * x[0] + g12 * x[1]};
  const F by_length[3] = {fma_(g01, m01, g02 * m02), fma_(g01, m01, g12 * m12), fma_(g02, m02, g12 * m12)};
  for (int k = 0; k < 3; k++) {
    out.by_x[k] = out.by_x[k] + fma_(trace, x[k], by_x[k]);
    out.by_y[k] = out.by_y[k] + fma_(trace, y[k], by_y[k]);
    out.by_length[k] = out.by_length[k] + fma_(trace, fma_(x[k], x[k], y[k] * y[k]), by_length[k]);
  }
}

// Gradient of project() by the centre in the camera (returned), the axes, and the pose's rows in J (added to `out`);
// gx, gy, gz are by the pixel position and the depth.
template <class F>
GW_HD Vec3<F> project_vjp(const Projected<F> &p, const Axes<F> &axes, const Pose<F> &pose, const Pinhole<F> &camera,
                          const AxisGradient<F> &g, F gx, F gy, F gz, Axes<F> &by_axes, PoseGradient<F> &out) {
  const F zero(0.0f);
  Vec3<F> jx = {zero, zero, zero}, jy = {zero, zero, zero};
  for (int k = 0; k < 3; k++) {
    jx = plus(jx, axes.column[k], g.by_x[k]);
    jy = plus(jy, axes.column[k], g.by_y[k]);
    by_axes.column[k] = plus(scaled(p.jx, g.by_x[k]), p.jy, g.by_y[k]);
  }
  const F sx = camera.fx * p.inverse_z, sy = camera.fy * p.inverse_z;
  out.row[0] = plus(out.row[0], jx, sx);
  out.row[1] = plus(out.row[1], jy, sy);
  out.row[2] = plus(plus(out.row[2], jx, zero - sx * p.tan_x), jy, zero - sy * p.tan_y);
  Vec3<F> centre = pixel_vjp(p.centre, p.inverse_z, camera.fx, camera.fy, gx, gy);
  const F tan_x = p.centre.x * p.inverse_z, tan_y = p.centre.y * p.inverse_z;
  const F free_x = select_(abs_(tan_x) <= camera.limit_x, sx * dot(jx, pose.row[2]) * p.inverse_z, zero);
  const F free_y = select_(abs_(tan_y) <= camera.limit_y, sy * dot(jy, pose.row[2]) * p.inverse_z, zero);
  // J shrinks with 1/z: the gradient by log(1/z) is the sum of those by the logarithms of the axes' lengths.
  const F by_size = g.by_length[0] + g.by_length[1] + g.by_length[2];
  centre.x = centre.x - free_x;
  centre.y = centre.y - free_y;
  centre.z = centre.z + gz + fma_(free_x, tan_x, free_y * tan_y) - by_size * p.inverse_z;
  return centre;
}

// Gradient by v of v / |v|, where `unit` is the result.
template <class F>
GW_HD Vec3<F> unit_vjp(const Vec3<F> &unit, F inverse_length, const Vec3<F> &g) {
  return scaled(plus(g, unit, F(0.0f) - dot(unit, g)), inverse_length);
}

}  // namespace GW_ISA
}  // namespace gw
