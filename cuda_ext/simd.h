// Sixteen float lanes, whatever the machine: one 512-bit register, two 256-bit ones, or the compiler's own vectors.
//
// A translation unit defines GW_ISA (avx512, avx2 or portable) before it includes this; everything that is compiled with
// that unit's flags lives in namespace gw::GW_ISA, so that the linker can never mix instruction sets.
#pragma once
#include <cstdint>
#include <cstring>

#define GW_INLINE inline __attribute__((always_inline))

#if defined(GW_USE_AVX512)
#include "simd_avx512.h"
#elif defined(GW_USE_AVX2)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace gw {
namespace GW_ISA {

constexpr int LANES = 16;

GW_INLINE vf operator-(vf a) { return vf(0.0f) - a; }
GW_INLINE vf abs_(vf a) { return max_(a, -a); }
GW_INLINE vf &operator+=(vf &a, vf b) { return a = a + b; }
GW_INLINE vf &operator-=(vf &a, vf b) { return a = a - b; }
GW_INLINE vf &operator*=(vf &a, vf b) { return a = a * b; }

// 2^x by a polynomial of degree four (relative error 3e-6, for pixels; x above -126) or six (2e-7, for parameters).
GW_INLINE vf exp2_fast(vf x) {
  const vf whole = round_(x), f = x - whole, ff = f * f;  // Estrin's order: a short chain
  const vf low = fma_(vf(0.693121938f), f, vf(0.99999925f)), high = fma_(vf(0.0559174982f), f, vf(0.240248107f));
  return scale2_(fma_(fma_(vf(0.0095677384f), ff, high), ff, low), whole);
}
GW_INLINE vf exp2_(vf x) {
  x = min_(max_(x, vf(-126.0f)), vf(127.0f));
  const vf whole = round_(x), f = x - whole;
  vf p = fma_(vf(1.5403530e-4f), f, vf(1.3333558e-3f));
  p = fma_(p, f, vf(9.6181291e-3f));
  p = fma_(p, f, vf(5.5504109e-2f));
  p = fma_(p, f, vf(2.4022651e-1f));
  p = fma_(p, f, vf(6.9314718e-1f));
  p = fma_(p, f, vf(1.0f));
  return scale2_(p, whole);
}
// log2 of a positive normal number: exponent, then 2 atanh(s) / ln 2 with s = (m-1)/(m+1), m in [sqrt(1/2), sqrt(2)).
GW_INLINE vf log2_(vf x) {
  vf mantissa, exponent;
  split2_(x, mantissa, exponent);
  const vm high = mantissa > vf(1.41421356f);
  mantissa = select_(high, mantissa * vf(0.5f), mantissa);
  exponent = select_(high, exponent + vf(1.0f), exponent);
  const vf s = (mantissa - vf(1.0f)) / (mantissa + vf(1.0f)), ss = s * s;
  vf p = fma_(vf(2.0f / 9), ss, vf(2.0f / 7));
  p = fma_(p, ss, vf(2.0f / 5));
  p = fma_(p, ss, vf(2.0f / 3));
  p = fma_(p, ss, vf(2.0f));
  return fma_(p * s, vf(1.44269504f), exponent);
}

}  // namespace GW_ISA
}  // namespace gw
