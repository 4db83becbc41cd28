// The formulas of a Gaussian's picture, once for all targets (the contract is gworld/render/api.py).
//
// Everything is a template over the real type F: float on a GPU thread or in plain C++, sixteen lanes (`vf`) in the
// CPU's kernels. Nothing branches on data: decisions are masks. The derivatives stand in splat_vjp.h.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define GW_HD __host__ __device__ __forceinline__
#else
#define GW_HD inline __attribute__((always_inline))
#endif
#if !defined(GW_ISA)
#define GW_ISA scalar
#endif

namespace gw {
namespace GW_ISA {

constexpr float DILATION = 0.3f;
constexpr float MAX_ALPHA = 0.999f;
constexpr float MIN_LOG2_ALPHA = -7.99435344f;  // log2(1 / 255)
constexpr float MIN_LOGIT = -5.5373340f;          // the least float whose sigmoid is 1 / 255 or more
constexpr float MIN_TRANSMITTANCE = 1e-4f;
constexpr float CLAMP_FRUSTUM = 1.3f;
constexpr float LARGEST = 1e10f;
constexpr float MAX_COVARIANCE = 1e16f;
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;
constexpr float HALF_LOG2_E = 0.72134752f;       // exp(-q/2) = 2^(-HALF_LOG2_E q)
constexpr float ROOT_HALF_LOG2_E = 0.84932180f;
constexpr float EXTENT_SLACK = 1e-4f;  // added to squared radii (log2 units) so that rounding never cuts a pixel off

GW_HD float fma_(float a, float b, float c) { return a * b + c; }
GW_HD float fnma_(float a, float b, float c) { return c - a * b; }
GW_HD float min_(float a, float b) { return a < b ? a : b; }
GW_HD float max_(float a, float b) { return a > b ? a : b; }
GW_HD float abs_(float a) { return a < 0.0f ? -a : a; }
GW_HD float sqrt_(float a) { return sqrtf(a); }
GW_HD float select_(bool m, float a, float b) { return m ? a : b; }
GW_HD float exp2_(float a) { return exp2f(a); }
GW_HD float log2_(float a) { return log2f(a); }

template <class F>
struct Vec3 {
  F x, y, z;
};
template <class F>
GW_HD F dot(const Vec3<F> &a, const Vec3<F> &b) {
  return fma_(a.z, b.z, fma_(a.y, b.y, a.x * b.x));
}
template <class F>
GW_HD Vec3<F> scaled(const Vec3<F> &a, F s) {
  return {a.x * s, a.y * s, a.z * s};
}
template <class F>  // a + b s
GW_HD Vec3<F> plus(const Vec3<F> &a, const Vec3<F> &b, F s) {
  return {fma_(b.x, s, a.x), fma_(b.y, s, a.y), fma_(b.z, s, a.z)};
}

// A rigid transform's first three rows: rotation, then translation.
template <class F>
struct Pose {
  Vec3<F> row[3];
  F shift[3];
};
template <class F>
GW_HD Vec3<F> move_point(const Pose<F> &pose, const Vec3<F> &p) {
  return {dot(pose.row[0], p) + pose.shift[0], dot(pose.row[1], p) + pose.shift[1], dot(pose.row[2], p) + pose.shift[2]};
}
template <class F>  // R^T v
GW_HD Vec3<F> turn_back(const Pose<F> &pose, const Vec3<F> &v) {
  return plus(plus(scaled(pose.row[0], v.x), pose.row[1], v.y), pose.row[2], v.z);
}

// A Gaussian's axes in its link's frame: the columns of R S, as long as its standard deviations.
template <class F>
struct Axes {
  Vec3<F> column[3];
};
// Columns of the rotation of a unit quaternion (w, x, y, z).
template <class F>
GW_HD Axes<F> rotation_columns(F w, F x, F y, F z) {
  const F xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z, wx = w * x, wy = w * y, wz = w * z;
  const F one(1.0f), two(2.0f);
  return {{{one - two * (yy + zz), two * (xy + wz), two * (xz - wy)},
           {two * (xy - wz), one - two * (xx + zz), two * (yz + wx)},
           {two * (xz + wy), two * (yz - wx), one - two * (xx + yy)}}};
}
template <class F>
GW_HD Axes<F> scaled_axes(const Axes<F> &rotation, const Vec3<F> &scale) {
  return {{scaled(rotation.column[0], scale.x), scaled(rotation.column[1], scale.y), scaled(rotation.column[2], scale.z)}};
}

// A pinhole camera's numbers.
template <class F>
struct Pinhole {
  F fx, fy, cx, cy, limit_x, limit_y;  // limits of |x/z| and |y/z| in J
};
template <class F>
GW_HD Pinhole<F> pinhole(const float *K, int width, int height) {
  return {F(K[0]), F(K[4]), F(K[2]), F(K[5]), F(CLAMP_FRUSTUM * 0.5f * width / K[0]), F(CLAMP_FRUSTUM * 0.5f * height / K[4])};
}

// A Gaussian on the image plane. a, b, c are the dilated covariance xx, xy, yy.
template <class F>
struct Projected {
  Vec3<F> centre;               // in the camera
  F x, y;                       // pixels
  F inverse_z, tan_x, tan_y;    // 1/z and the clamped x/z, y/z
  Vec3<F> jx, jy;               // rows of J A: how the pixel moves with a point in the link's frame
  F axis_x[3], axis_y[3];       // J A R S
  F a, b, c, det_before, det;
};

// EWA projection (Zwicker et al. 2002, eqs. 24-31). The determinant before dilation is the sum of the squared minors
// of J A R S (Cauchy-Binet), which keeps its digits where a c - b^2 loses them.
template <class F>
GW_HD Projected<F> project(const Vec3<F> &mean, const Axes<F> &axes, const Pose<F> &pose, const Pinhole<F> &camera) {
  Projected<F> p;
  p.centre = move_point(pose, mean);
  p.inverse_z = F(1.0f) / p.centre.z;
  const F tx = p.centre.x * p.inverse_z, ty = p.centre.y * p.inverse_z;
  p.x = fma_(camera.fx, tx, camera.cx);
  p.y = fma_(camera.fy, ty, camera.cy);
  p.tan_x = max_(min_(tx, camera.limit_x), F(0.0f) - camera.limit_x);
  p.tan_y = max_(min_(ty, camera.limit_y), F(0.0f) - camera.limit_y);
  p.jx = scaled(plus(pose.row[0], pose.row[2], F(0.0f) - p.tan_x), camera.fx * p.inverse_z);
  p.jy = scaled(plus(pose.row[1], pose.row[2], F(0.0f) - p.tan_y), camera.fy * p.inverse_z);
  for (int k = 0; k < 3; k++) {
    p.axis_x[k] = dot(p.jx, axes.column[k]);
    p.axis_y[k] = dot(p.jy, axes.column[k]);
  }
  const F xx = fma_(p.axis_x[2], p.axis_x[2], fma_(p.axis_x[1], p.axis_x[1], p.axis_x[0] * p.axis_x[0]));
  const F yy = fma_(p.axis_y[2], p.axis_y[2], fma_(p.axis_y[1], p.axis_y[1], p.axis_y[0] * p.axis_y[0]));
  p.b = fma_(p.axis_x[2], p.axis_y[2], fma_(p.axis_x[1], p.axis_y[1], p.axis_x[0] * p.axis_y[0]));
  const F m01 = p.axis_x[0] * p.axis_y[1] - p.axis_x[1] * p.axis_y[0];
  const F m02 = p.axis_x[0] * p.axis_y[2] - p.axis_x[2] * p.axis_y[0];
  const F m12 = p.axis_x[1] * p.axis_y[2] - p.axis_x[2] * p.axis_y[1];
  p.det_before = fma_(m01, m01, fma_(m02, m02, m12 * m12));
  p.det = p.det_before + fma_(F(DILATION), xx + yy, F(DILATION * DILATION));
  p.a = xx + F(DILATION);
  p.c = yy + F(DILATION);
  return p;
}

// Log2 of the opacity's factor when antialiased: half the log of det before / det after.
template <class F>
GW_HD F log2_compensation(const Projected<F> &p) {
  const F ratio = p.det_before / p.det;
  return F(0.5f) * log2_(max_(ratio, F(1e-30f)));
}

// The exponent as a difference of squares: log2 alpha = peak - u^2 - v^2 with u = ux dx + uy dy, v = vy dy, where
// (dx, dy) runs from the projected centre to the pixel's. `along_x` / `along_y`: the ellipse's ridges x = along_x y and
// y = along_y x, on which u^2 + v^2 is least for given y or x.
template <class F>
struct Ellipse {
  F ux, uy, vy, along_x, along_y;
};
template <class F>
GW_HD Ellipse<F> ellipse_of(const Projected<F> &p) {
  const F along_x = p.b / p.c;
  const F ux = F(ROOT_HALF_LOG2_E) * sqrt_(p.c / p.det);
  return {ux, F(0.0f) - ux * along_x, F(ROOT_HALF_LOG2_E) / sqrt_(p.c), along_x, p.b / p.a};
}
template <class F>
GW_HD F log2_alpha(F peak, F u, F v) {
  return fnma_(u, u, fnma_(v, v, peak));
}
// Least u^2 + v^2 over the rectangle [x0,x1] x [y0,y1] given relative to the centre: the nearest point lies on the
// vertical or the horizontal side that faces the centre (or is the centre), at the ridge or the end nearest to it.
template <class F>
GW_HD F least_in_box(F ux, F uy, F vy, F along_x, F along_y, F x0, F x1, F y0, F y1) {
  const F zero(0.0f);
  const F xe = min_(max_(zero, x0), x1), ye = min_(max_(zero, y0), y1);
  const F ys = min_(max_(along_y * xe, y0), y1), xs = min_(max_(along_x * ye, x0), x1);
  const F u1 = fma_(ux, xe, uy * ys), v1 = vy * ys, u2 = fma_(ux, xs, uy * ye), v2 = vy * ye;
  return min_(fma_(u1, u1, v1 * v1), fma_(u2, u2, v2 * v2));
}
// Half width or height of the ellipse on which log2 alpha = MIN_LOG2_ALPHA; `variance` is a or c.
template <class F>
GW_HD F half_extent(F peak, F variance) {
  return sqrt_(max_(peak - F(MIN_LOG2_ALPHA) + F(EXTENT_SLACK), F(0.0f)) * variance * F(1.0f / HALF_LOG2_E));
}

// log2 of the sigmoid of a logit, and of a standard deviation's logarithm the deviation; both good to 2e-7.
template <class F>
GW_HD F log2_sigmoid(F logit) {
  const F magnitude = abs_(logit);
  const F tail = log2_(F(1.0f) + exp2_(magnitude * F(-LOG2_E)));
  return min_(logit, F(0.0f)) * F(LOG2_E) - tail;
}
template <class F>
GW_HD F exp_(F x) {
  return exp2_(x * F(LOG2_E));
}

}  // namespace GW_ISA
}  // namespace gw
