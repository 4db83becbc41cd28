// AVX2 and FMA: sixteen floats in two registers, masks as all-ones lanes.
#pragma once
#include <immintrin.h>

namespace gw {
namespace GW_ISA {

struct vm {
  __m256 a, b;
};
struct vf {
  __m256 a, b;
  vf() = default;
  GW_INLINE vf(__m256 x, __m256 y) : a(x), b(y) {}
  GW_INLINE vf(float x) : a(_mm256_set1_ps(x)), b(a) {}
};

GW_INLINE vf load_(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
GW_INLINE void store_(float *p, vf x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
GW_INLINE vf operator+(vf x, vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
GW_INLINE vf operator-(vf x, vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
GW_INLINE vf operator*(vf x, vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
GW_INLINE vf operator/(vf x, vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
GW_INLINE vf fma_(vf x, vf y, vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
GW_INLINE vf fnma_(vf x, vf y, vf z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
GW_INLINE vf min_(vf x, vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
GW_INLINE vf max_(vf x, vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
GW_INLINE vf sqrt_(vf x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
GW_INLINE vf round_(vf x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
GW_INLINE vf floor_(vf x) { return {_mm256_round_ps(x.a, 9), _mm256_round_ps(x.b, 9)}; }
GW_INLINE vf ceil_(vf x) { return {_mm256_round_ps(x.a, 10), _mm256_round_ps(x.b, 10)}; }
GW_INLINE __m256 scale2_half(__m256 x, __m256 power) {
  const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift));
}
GW_INLINE vf scale2_(vf x, vf power) { return {scale2_half(x.a, power.a), scale2_half(x.b, power.b)}; }
GW_INLINE __m256 exponent_half(__m256 x) {
  const __m256i e = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}
GW_INLINE __m256 mantissa_half(__m256 x) {
  const __m256i m = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x007fffff));
  return _mm256_castsi256_ps(_mm256_or_si256(m, _mm256_set1_epi32(0x3f800000)));
}
GW_INLINE void split2_(vf x, vf &mantissa, vf &exponent) {
  exponent = {exponent_half(x.a), exponent_half(x.b)};
  mantissa = {mantissa_half(x.a), mantissa_half(x.b)};
}
GW_INLINE __m256 reciprocal_half(__m256 x) {
  const __m256 r = _mm256_rcp_ps(x);
  return _mm256_mul_ps(r, _mm256_fnmadd_ps(x, r, _mm256_set1_ps(2.0f)));
}
GW_INLINE vf reciprocal_(vf x) { return {reciprocal_half(x.a), reciprocal_half(x.b)}; }

GW_INLINE vm operator<(vf x, vf y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)}; }
GW_INLINE vm operator<=(vf x, vf y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ)}; }
GW_INLINE vm operator>(vf x, vf y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)}; }
GW_INLINE vm operator>=(vf x, vf y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)}; }
GW_INLINE vm operator&(vm x, vm y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
GW_INLINE vm operator|(vm x, vm y) { return {_mm256_or_ps(x.a, y.a), _mm256_or_ps(x.b, y.b)}; }
GW_INLINE vf select_(vm m, vf x, vf y) { return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)}; }
GW_INLINE vf zero_unless_(vm m, vf x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }
GW_INLINE vf mul_if_(vm m, vf x, vf y) { return zero_unless_(m, x * y); }
GW_INLINE vf fma_if_(vm m, vf x, vf y, vf z) { return fma_(zero_unless_(m, x), y, z); }
GW_INLINE uint32_t bits_(vm m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
}
GW_INLINE bool any_(vm m) { return _mm256_movemask_ps(_mm256_or_ps(m.a, m.b)) != 0; }
GW_INLINE vm mask_from_bits_(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), all = _mm256_set1_epi32(static_cast<int>(bits));
  const __m256i high = _mm256_slli_epi32(lane, 8);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lane), lane)),
          _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high))};
}
GW_INLINE float sum_(vf x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
GW_INLINE vf load_int_(const int32_t *p) {
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))),
          _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 8)))};
}
GW_INLINE void store_int_(int32_t *p, vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_cvttps_epi32(x.a));
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + 8), _mm256_cvttps_epi32(x.b));
}

// Reads lane i from base[index[i] * stride].
GW_INLINE vf gather_(const float *base, const int32_t *index, int stride) {
  const __m256i by = _mm256_set1_epi32(stride);
  const __m256i low = _mm256_mullo_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(index)), by);
  const __m256i high = _mm256_mullo_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(index + 8)), by);
  return {_mm256_i32gather_ps(base, low, 4), _mm256_i32gather_ps(base, high, 4)};
}
// Reads lane i from base[i * stride].
GW_INLINE vf strided_(const float *base, int stride) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i at = _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride));
  return {_mm256_i32gather_ps(base, at, 4), _mm256_i32gather_ps(base + 8 * stride, at, 4)};
}

// Lane (3 i + k) % 8 of one of three registers holds channel k of pixel i, and no lane is needed of two of them.
template <int FROM_B, int FROM_C>
GW_INLINE __m256 channel_half(const float *p, int channel) {
  const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8), c = _mm256_loadu_ps(p + 16);
  const __m256i step = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);  // only the low three bits count
  const __m256 lanes = _mm256_blend_ps(_mm256_blend_ps(a, b, FROM_B), c, FROM_C);
  return _mm256_permutevar8x32_ps(lanes, _mm256_add_epi32(step, _mm256_set1_epi32(channel)));
}
GW_INLINE __m256 two_quads(const float *a, const float *b) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
}
GW_INLINE void split4_half(const float *p, __m256 out[4]) {
  const __m256 q0 = two_quads(p, p + 16), q1 = two_quads(p + 4, p + 20), q2 = two_quads(p + 8, p + 24), q3 = two_quads(p + 12, p + 28);
  const __m256 low01 = _mm256_unpacklo_ps(q0, q1), high01 = _mm256_unpackhi_ps(q0, q1);
  const __m256 low23 = _mm256_unpacklo_ps(q2, q3), high23 = _mm256_unpackhi_ps(q2, q3);
  out[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  out[1] = _mm256_shuffle_ps(low01, low23, 0xEE);
  out[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  out[3] = _mm256_shuffle_ps(high01, high23, 0xEE);
}

// Splits sixteen consecutive groups of three or four floats into columns.
GW_INLINE void split3_(const float *p, vf out[3]) {
  out[0] = {channel_half<0x92, 0x24>(p, 0), channel_half<0x92, 0x24>(p + 24, 0)};
  out[1] = {channel_half<0x24, 0x49>(p, 1), channel_half<0x24, 0x49>(p + 24, 1)};
  out[2] = {channel_half<0x49, 0x92>(p, 2), channel_half<0x49, 0x92>(p + 24, 2)};
}
GW_INLINE void split4_(const float *p, vf out[4]) {
  __m256 a[4], b[4];
  split4_half(p, a), split4_half(p + 32, b);
  for (int k = 0; k < 4; k++) out[k] = {a[k], b[k]};
}

// Four rows of four pixels: what a pixel has in two or three planes side by side, as the first, second (and third) four
// floats of each row; and back.
template <int A, int B, int C, int D>  // lanes A and B of each four of x, lanes C and D of y
GW_INLINE vf mix(vf x, vf y) {
  constexpr int lanes = A | B << 2 | C << 4 | D << 6;
  return {_mm256_shuffle_ps(x.a, y.a, lanes), _mm256_shuffle_ps(x.b, y.b, lanes)};
}
GW_INLINE vf low_pairs(vf x, vf y) { return {_mm256_unpacklo_ps(x.a, y.a), _mm256_unpacklo_ps(x.b, y.b)}; }
GW_INLINE vf high_pairs(vf x, vf y) { return {_mm256_unpackhi_ps(x.a, y.a), _mm256_unpackhi_ps(x.b, y.b)}; }
GW_INLINE void weave2_(vf a, vf b, vf out[2]) {
  out[0] = low_pairs(a, b);
  out[1] = high_pairs(a, b);
}
GW_INLINE void weave3_(vf a, vf b, vf c, vf out[3]) {
  out[0] = mix<0, 1, 0, 2>(low_pairs(a, b), mix<0, 0, 1, 1>(c, a));
  out[1] = mix<2, 3, 0, 1>(low_pairs(b, c), high_pairs(a, b));
  out[2] = mix<0, 2, 2, 3>(mix<2, 2, 3, 3>(c, a), high_pairs(b, c));
}
GW_INLINE void unweave2_(const vf in[2], vf out[2]) {
  out[0] = mix<0, 2, 0, 2>(in[0], in[1]);
  out[1] = mix<1, 3, 1, 3>(in[0], in[1]);
}
GW_INLINE void unweave3_(const vf in[3], vf out[3]) {
  out[0] = mix<0, 3, 0, 2>(in[0], mix<2, 2, 1, 1>(in[1], in[2]));
  out[1] = mix<0, 2, 0, 2>(mix<1, 1, 0, 0>(in[0], in[1]), mix<3, 3, 2, 2>(in[1], in[2]));
  out[2] = mix<0, 2, 0, 3>(mix<2, 2, 1, 1>(in[0], in[1]), in[2]);
}

// Stores (a, b) of sixteen pixels as pairs; the i-th pair is that of pixel pair_pixel(i). pair_: one pair in all lanes.
GW_INLINE void store_pairs_(float *out, vf x, vf y) {
  _mm256_storeu_ps(out, _mm256_unpacklo_ps(x.a, y.a));
  _mm256_storeu_ps(out + 8, _mm256_unpackhi_ps(x.a, y.a));
  _mm256_storeu_ps(out + 16, _mm256_unpacklo_ps(x.b, y.b));
  _mm256_storeu_ps(out + 24, _mm256_unpackhi_ps(x.b, y.b));
}
constexpr int pair_pixel(int i) { return (i & 8) + (i & 2) * 2 + (i & 1) + (i & 4) / 2; }
GW_INLINE vf pair_(const float *p) {
  const __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double *>(p)));
  return {both, both};
}

// Four times four floats side by side; spread_: the K-th of each four in all its lanes; start_quads_: fours whose first two
// floats are those of a and b.
GW_INLINE vf load_quads_(const float *a, const float *b, const float *c, const float *d) {
  return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1),
          _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(c)), _mm_loadu_ps(d), 1)};
}
GW_INLINE void store_quads_(vf x, float *a, float *b, float *c, float *d) {
  _mm_storeu_ps(a, _mm256_castps256_ps128(x.a));
  _mm_storeu_ps(b, _mm256_extractf128_ps(x.a, 1));
  _mm_storeu_ps(c, _mm256_castps256_ps128(x.b));
  _mm_storeu_ps(d, _mm256_extractf128_ps(x.b, 1));
}
template <int K>
GW_INLINE vf spread_(vf x) {
  return {_mm256_permute_ps(x.a, 0x55 * K), _mm256_permute_ps(x.b, 0x55 * K)};
}
GW_INLINE __m256 start_half(__m256 a, __m256 b, __m256 x) { return _mm256_blend_ps(_mm256_blend_ps(x, a, 0x11), b, 0x22); }
GW_INLINE vf start_quads_(vf a, vf b, vf x) { return {start_half(a.a, b.a, x.a), start_half(a.b, b.b, x.b)}; }

// The bits 0, 4, 8, ... of x side by side.
GW_INLINE uint32_t every_fourth_(uint64_t x) {
  x &= 0x1111111111111111u;
  x = (x | x >> 3) & 0x0303030303030303u;
  x = (x | x >> 6) & 0x000f000f000f000fu;
  x = (x | x >> 12) & 0x000000ff000000ffu;
  return static_cast<uint32_t>((x | x >> 24) & 0xffff);
}
// The places of a byte's set bits, a byte each, side by side: `pext` would find them, but takes hundreds of cycles on the
// older of the processors that have no AVX-512.
struct Places {
  uint64_t of[256];
  constexpr Places() : of{} {
    for (int bits = 0; bits < 256; bits++)
      for (int place = 0, count = 0; place < 8; place++)
        if (bits >> place & 1) of[bits] |= static_cast<uint64_t>(place) << 8 * count++;
  }
};
constexpr Places places;
// Appends, to the list of each block named in `blocks`, those of first..first+15 that reach it; hits: see localise.
template <class Lists>
GW_INLINE void append_to_blocks(const uint64_t hits[4], int first, uint32_t blocks, Lists &lists) {
  for (; blocks; blocks &= blocks - 1) {
    const int block = __builtin_ctz(blocks);
    const uint32_t in = every_fourth_(hits[block & 3] >> (block >> 2));
    for (int half = 0; half < 16; half += 8) {
      const __m256i at = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(places.of[in >> half & 0xff])));
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(lists.values[block] + lists.count[block]),
                          _mm256_add_epi32(at, _mm256_set1_epi32(first + half)));
      lists.count[block] += __builtin_popcount(in >> half & 0xff);
    }
  }
}

// rows[i] = sixteen consecutive floats, row i of the 16 x 16 matrix whose columns are given.
GW_INLINE void transpose_half(const __m256 in[8], __m256 out[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(in[i], in[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(in[i], in[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xEE);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; i++) {
    out[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    out[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}
GW_INLINE void transpose_(const vf columns[16], vf rows[16]) {
  for (int half = 0; half < 2; half++) {
    __m256 in[8], top[8], bottom[8];
    for (int i = 0; i < 8; i++) in[i] = columns[8 * half + i].a;
    transpose_half(in, top);
    for (int i = 0; i < 8; i++) in[i] = columns[8 * half + i].b;
    transpose_half(in, bottom);
    for (int i = 0; i < 8; i++) {
      (half ? rows[i].b : rows[i].a) = top[i];
      (half ? rows[i + 8].b : rows[i + 8].a) = bottom[i];
    }
  }
}

}  // namespace GW_ISA
}  // namespace gw
