// AVX-512 (F, BW, DQ, VL): sixteen floats in one register, masks in mask registers.
#pragma once
#include <immintrin.h>

namespace gw {
namespace GW_ISA {

struct vm {
  __mmask16 m;
};
struct vf {
  __m512 v;
  vf() = default;
  GW_INLINE vf(__m512 x) : v(x) {}
  GW_INLINE vf(float x) : v(_mm512_set1_ps(x)) {}
};

GW_INLINE vf load_(const float *p) { return _mm512_loadu_ps(p); }
GW_INLINE void store_(float *p, vf a) { _mm512_storeu_ps(p, a.v); }
GW_INLINE vf operator+(vf a, vf b) { return _mm512_add_ps(a.v, b.v); }
GW_INLINE vf operator-(vf a, vf b) { return _mm512_sub_ps(a.v, b.v); }
GW_INLINE vf operator*(vf a, vf b) { return _mm512_mul_ps(a.v, b.v); }
GW_INLINE vf operator/(vf a, vf b) { return _mm512_div_ps(a.v, b.v); }
GW_INLINE vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
GW_INLINE vf fnma_(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
GW_INLINE vf min_(vf a, vf b) { return _mm512_min_ps(a.v, b.v); }
GW_INLINE vf max_(vf a, vf b) { return _mm512_max_ps(a.v, b.v); }
GW_INLINE vf sqrt_(vf a) { return _mm512_sqrt_ps(a.v); }
GW_INLINE vf round_(vf a) { return _mm512_roundscale_ps(a.v, 0); }
GW_INLINE vf floor_(vf a) { return _mm512_roundscale_ps(a.v, 1); }
GW_INLINE vf ceil_(vf a) { return _mm512_roundscale_ps(a.v, 2); }
GW_INLINE vf scale2_(vf a, vf power) { return _mm512_scalef_ps(a.v, power.v); }
GW_INLINE void split2_(vf x, vf &mantissa, vf &exponent) {
  exponent = _mm512_getexp_ps(x.v);
  mantissa = _mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
}
GW_INLINE vf reciprocal_(vf a) { /* one Newton step: 1e-7 relative */
  const __m512 r = _mm512_rcp14_ps(a.v);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)));
}

GW_INLINE vm operator<(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
GW_INLINE vm operator<=(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
GW_INLINE vm operator>(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
GW_INLINE vm operator>=(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
GW_INLINE vm operator&(vm a, vm b) { return {static_cast<__mmask16>(a.m & b.m)}; }
GW_INLINE vm operator|(vm a, vm b) { return {static_cast<__mmask16>(a.m | b.m)}; }
GW_INLINE vf select_(vm m, vf a, vf b) { return _mm512_mask_mov_ps(b.v, m.m, a.v); }
GW_INLINE vf zero_unless_(vm m, vf a) { return _mm512_maskz_mov_ps(m.m, a.v); }
GW_INLINE vf mul_if_(vm m, vf a, vf b) { return _mm512_maskz_mul_ps(m.m, a.v, b.v); }
GW_INLINE vf fma_if_(vm m, vf a, vf b, vf c) { return _mm512_mask3_fmadd_ps(a.v, b.v, c.v, m.m); }
GW_INLINE uint32_t bits_(vm m) { return m.m; }
GW_INLINE bool any_(vm m) { return m.m != 0; }
GW_INLINE vm mask_from_bits_(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
GW_INLINE float sum_(vf a) { return _mm512_reduce_add_ps(a.v); }
GW_INLINE vf load_int_(const int32_t *p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
GW_INLINE void store_int_(int32_t *p, vf a) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(a.v)); }

// Reads lane i from base[index[i] * stride].
GW_INLINE vf gather_(const float *base, const int32_t *index, int stride) {
  const __m512i at = _mm512_mullo_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(stride));
  return _mm512_i32gather_ps(at, base, 4);
}
// Reads lane i from base[i * stride].
GW_INLINE vf strided_(const float *base, int stride) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_i32gather_ps(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), base, 4);
}

// Splits sixteen consecutive groups of three or four floats into columns.
GW_INLINE void split3_(const float *p, vf out[3]) {
  alignas(64) static constexpr int32_t first[3][16] = {{0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30},
                                                       {1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31},
                                                       {2, 5, 8, 11, 14, 17, 20, 23, 26, 29}};
  alignas(64) static constexpr int32_t second[3][16] = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29},
                                                        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30},
                                                        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31}};
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16), c = _mm512_loadu_ps(p + 32);
  for (int k = 0; k < 3; k++)
    out[k] = _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, _mm512_load_si512(first[k]), b), _mm512_load_si512(second[k]), c);
}
GW_INLINE void split4_(const float *p, vf out[4]) {
  const __m512i low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(2));
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16), c = _mm512_loadu_ps(p + 32), d = _mm512_loadu_ps(p + 48);
  const __m512 ab = _mm512_permutex2var_ps(a, low, b), cd = _mm512_permutex2var_ps(c, low, d);
  out[0] = _mm512_shuffle_f32x4(ab, cd, 0x44);
  out[1] = _mm512_shuffle_f32x4(ab, cd, 0xEE);
  const __m512 zw = _mm512_permutex2var_ps(a, high, b), wz = _mm512_permutex2var_ps(c, high, d);
  out[2] = _mm512_shuffle_f32x4(zw, wz, 0x44);
  out[3] = _mm512_shuffle_f32x4(zw, wz, 0xEE);
}

// Four rows of four pixels: what a pixel has in two or three planes side by side, as the first, second (and third) four
// floats of each row; and back.
template <int A, int B, int C, int D>  // lanes A and B of each four of x, lanes C and D of y
GW_INLINE __m512 mix(__m512 x, __m512 y) {
  return _mm512_shuffle_ps(x, y, A | B << 2 | C << 4 | D << 6);
}
GW_INLINE void weave2_(vf a, vf b, vf out[2]) {
  out[0] = _mm512_unpacklo_ps(a.v, b.v);
  out[1] = _mm512_unpackhi_ps(a.v, b.v);
}
GW_INLINE void weave3_(vf a, vf b, vf c, vf out[3]) {
  out[0] = mix<0, 1, 0, 2>(_mm512_unpacklo_ps(a.v, b.v), mix<0, 0, 1, 1>(c.v, a.v));
  out[1] = mix<2, 3, 0, 1>(_mm512_unpacklo_ps(b.v, c.v), _mm512_unpackhi_ps(a.v, b.v));
  out[2] = mix<0, 2, 2, 3>(mix<2, 2, 3, 3>(c.v, a.v), _mm512_unpackhi_ps(b.v, c.v));
}
GW_INLINE void unweave2_(const vf in[2], vf out[2]) {
  out[0] = mix<0, 2, 0, 2>(in[0].v, in[1].v);
  out[1] = mix<1, 3, 1, 3>(in[0].v, in[1].v);
}
GW_INLINE void unweave3_(const vf in[3], vf out[3]) {
  out[0] = mix<0, 3, 0, 2>(in[0].v, mix<2, 2, 1, 1>(in[1].v, in[2].v));
  out[1] = mix<0, 2, 0, 2>(mix<1, 1, 0, 0>(in[0].v, in[1].v), mix<3, 3, 2, 2>(in[1].v, in[2].v));
  out[2] = mix<0, 2, 0, 3>(mix<2, 2, 1, 1>(in[0].v, in[1].v), in[2].v);
}

// Stores (a, b) of sixteen pixels as pairs; the i-th pair is that of pixel pair_pixel(i). pair_: one pair in all lanes.
GW_INLINE void store_pairs_(float *out, vf a, vf b) {
  _mm512_storeu_ps(out, _mm512_unpacklo_ps(a.v, b.v));
  _mm512_storeu_ps(out + 16, _mm512_unpackhi_ps(a.v, b.v));
}
constexpr int pair_pixel(int i) { return (i & 7) / 2 * 4 + (i & 1) + (i & 8) / 4; }
GW_INLINE vf pair_(const float *p) { return _mm512_castpd_ps(_mm512_set1_pd(*reinterpret_cast<const double *>(p))); }

// Four times four floats side by side; spread_: the K-th of each four in all its lanes; start_quads_: fours whose first two
// floats are those of a and b.
GW_INLINE vf load_quads_(const float *a, const float *b, const float *c, const float *d) {
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(c)), _mm_loadu_ps(d), 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
GW_INLINE void store_quads_(vf x, float *a, float *b, float *c, float *d) {
  _mm_storeu_ps(a, _mm512_castps512_ps128(x.v));
  _mm_storeu_ps(b, _mm512_extractf32x4_ps(x.v, 1));
  _mm_storeu_ps(c, _mm512_extractf32x4_ps(x.v, 2));
  _mm_storeu_ps(d, _mm512_extractf32x4_ps(x.v, 3));
}
template <int K>
GW_INLINE vf spread_(vf x) {
  return _mm512_permute_ps(x.v, 0x55 * K);
}
GW_INLINE vf start_quads_(vf a, vf b, vf x) { return _mm512_mask_mov_ps(_mm512_mask_mov_ps(x.v, 0x1111, a.v), 0x2222, b.v); }

// The bits 0, 4, 8, ... of x side by side.
GW_INLINE uint32_t every_fourth_(uint64_t x) { return static_cast<uint32_t>(_pext_u64(x, 0x1111111111111111u)); }
// Appends, to the list of each block named in `blocks`, those of first..first+15 that reach it; hits: see localise.
template <class Lists>
GW_INLINE void append_to_blocks(const uint64_t hits[4], int first, uint32_t blocks, Lists &lists) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i v = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
  for (; blocks; blocks &= blocks - 1) {
    const int block = __builtin_ctz(blocks);
    const uint32_t in = every_fourth_(hits[block & 3] >> (block >> 2));
    _mm512_storeu_si512(lists.values[block] + lists.count[block], _mm512_maskz_compress_epi32(static_cast<__mmask16>(in), v));
    lists.count[block] += __builtin_popcount(in);
  }
}

// rows[i] = sixteen consecutive floats, row i of the 16 x 16 matrix whose columns are given.
GW_INLINE void transpose_(const vf columns[16], vf rows[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(columns[i].v, columns[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(columns[i].v, columns[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xEE);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; i++) {
    const __m512 c0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), c1 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
    const __m512 d0 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88), d1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
    rows[i] = _mm512_shuffle_f32x4(c0, d0, 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(c0, d0, 0xDD);
    rows[i + 4] = _mm512_shuffle_f32x4(c1, d1, 0x88);
    rows[i + 12] = _mm512_shuffle_f32x4(c1, d1, 0xDD);
  }
}

}  // namespace GW_ISA
}  // namespace gw
