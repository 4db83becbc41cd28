// Real spherical harmonics up to degree 3 (3D Gaussian splatting's order and signs) and their gradient.
#pragma once
#include "splat.h"

namespace gw {
namespace GW_ISA {

constexpr float SH0 = 0.28209479f, SH1 = 0.48860251f;
constexpr float SH2[5] = {1.0925485f, -1.0925485f, 0.31539157f, -1.0925485f, 0.54627422f};
constexpr float SH3[7] = {-0.59004360f, 2.8906114f, -0.45704580f, 0.37317634f, -0.45704580f, 1.4453057f, -0.59004360f};

// basis[0..K-1] at the unit direction d, K = 1, 4, 9 or 16.
template <class F>
GW_HD void sh_basis(const Vec3<F> &d, int count, F *basis) {
  const F x = d.x, y = d.y, z = d.z;
  basis[0] = F(SH0);
  if (count < 4) return;
  basis[1] = F(-SH1) * y;
  basis[2] = F(SH1) * z;
  basis[3] = F(-SH1) * x;
  if (count < 9) return;
  const F xx = x * x, yy = y * y, zz = z * z;
  basis[4] = F(SH2[0]) * x * y;
  basis[5] = F(SH2[1]) * y * z;
  basis[6] = F(SH2[2]) * (F(2.0f) * zz - xx - yy);
  basis[7] = F(SH2[3]) * x * z;
  basis[8] = F(SH2[4]) * (xx - yy);
  if (count < 16) return;
  basis[9] = F(SH3[0]) * y * (F(3.0f) * xx - yy);
  basis[10] = F(SH3[1]) * x * y * z;
  basis[11] = F(SH3[2]) * y * (F(4.0f) * zz - xx - yy);
  basis[12] = F(SH3[3]) * z * (F(2.0f) * zz - F(3.0f) * (xx + yy));
  basis[13] = F(SH3[4]) * x * (F(4.0f) * zz - xx - yy);
  basis[14] = F(SH3[5]) * z * (xx - yy);
  basis[15] = F(SH3[6]) * x * (xx - F(3.0f) * yy);
}

// Gradient by d of sum_k g[k] basis[k] (the polynomials continued off the sphere).
template <class F>
GW_HD Vec3<F> sh_basis_vjp(const Vec3<F> &d, int count, const F *g) {
  const F x = d.x, y = d.y, z = d.z, two(2.0f), three(3.0f), four(4.0f), six(6.0f), eight(8.0f);
  Vec3<F> out = {F(0.0f), F(0.0f), F(0.0f)};
  if (count < 4) return out;
  out = {F(-SH1) * g[3], F(-SH1) * g[1], F(SH1) * g[2]};
  if (count < 9) return out;
  const F g4 = F(SH2[0]) * g[4], g5 = F(SH2[1]) * g[5], g6 = F(SH2[2]) * g[6], g7 = F(SH2[3]) * g[7], g8 = F(SH2[4]) * g[8];
  out.x = out.x + g4 * y + g7 * z + two * x * (g8 - g6);
  out.y = out.y + g4 * x + g5 * z - two * y * (g8 + g6);
  out.z = out.z + g5 * y + g7 * x + four * z * g6;
  if (count < 16) return out;
  const F xx = x * x, yy = y * y, zz = z * z;
  const F g9 = F(SH3[0]) * g[9], g10 = F(SH3[1]) * g[10], g11 = F(SH3[2]) * g[11], g12 = F(SH3[3]) * g[12];
  const F g13 = F(SH3[4]) * g[13], g14 = F(SH3[5]) * g[14], g15 = F(SH3[6]) * g[15];
  out.x = out.x + six * g9 * x * y + g10 * y * z - two * g11 * x * y - six * g12 * x * z +
          g13 * (four * zz - three * xx - yy) + two * g14 * x * z + three * g15 * (xx - yy);
  out.y = out.y + three * g9 * (xx - yy) + g10 * x * z + g11 * (four * zz - xx - three * yy) - six * g12 * y * z -
          two * g13 * x * y - two * g14 * y * z - six * g15 * x * y;
  out.z = out.z + g10 * x * y + eight * g11 * y * z + three * g12 * (two * zz - xx - yy) + eight * g13 * x * z +
          g14 * (xx - yy);
  return out;
}

}  // namespace GW_ISA
}  // namespace gw
