// Any machine: the compiler's own vectors, lowered to what it has (SSE2, NEON, plain floats).
#pragma once

namespace gw {
namespace GW_ISA {

typedef float float16 __attribute__((vector_size(64)));
typedef int32_t int16v __attribute__((vector_size(64)));

struct vm {
  int16v m;
};
struct vf {
  float16 v;
  vf() = default;
  GW_INLINE vf(float16 x) : v(x) {}
  GW_INLINE vf(float x) : v{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x} {}  // keeps every bit pattern
};

GW_INLINE vf load_(const float *p) {
  vf a;
  memcpy(&a.v, p, sizeof a.v);
  return a;
}
GW_INLINE void store_(float *p, vf a) { memcpy(p, &a.v, sizeof a.v); }
GW_INLINE vf operator+(vf a, vf b) { return a.v + b.v; }
GW_INLINE vf operator-(vf a, vf b) { return a.v - b.v; }
GW_INLINE vf operator*(vf a, vf b) { return a.v * b.v; }
GW_INLINE vf operator/(vf a, vf b) { return a.v / b.v; }
GW_INLINE vf fma_(vf a, vf b, vf c) { return a.v * b.v + c.v; }
GW_INLINE vf fnma_(vf a, vf b, vf c) { return c.v - a.v * b.v; }

GW_INLINE vm operator<(vf a, vf b) { return {a.v < b.v}; }
GW_INLINE vm operator<=(vf a, vf b) { return {a.v <= b.v}; }
GW_INLINE vm operator>(vf a, vf b) { return {a.v > b.v}; }
GW_INLINE vm operator>=(vf a, vf b) { return {a.v >= b.v}; }
GW_INLINE vm operator&(vm a, vm b) { return {a.m & b.m}; }
GW_INLINE vm operator|(vm a, vm b) { return {a.m | b.m}; }
GW_INLINE vf select_(vm m, vf a, vf b) { return (float16)((m.m & (int16v)a.v) | (~m.m & (int16v)b.v)); }
GW_INLINE vf zero_unless_(vm m, vf a) { return (float16)(m.m & (int16v)a.v); }
GW_INLINE vf mul_if_(vm m, vf a, vf b) { return zero_unless_(m, a * b); }
GW_INLINE vf fma_if_(vm m, vf a, vf b, vf c) { return fma_(zero_unless_(m, a), b, c); }
GW_INLINE uint32_t bits_(vm m) {
  uint32_t bits = 0;
  for (int i = 0; i < 16; i++) bits |= static_cast<uint32_t>(m.m[i] & 1) << i;
  return bits;
}
GW_INLINE bool any_(vm m) {
  int32_t seen = 0;
  for (int i = 0; i < 16; i++) seen |= m.m[i];
  return seen != 0;
}
GW_INLINE vm mask_from_bits_(uint32_t bits) {
  vm m;
  for (int i = 0; i < 16; i++) m.m[i] = -static_cast<int32_t>(bits >> i & 1);
  return m;
}

// As the x86 instructions: the second operand when one is NaN.
GW_INLINE vf min_(vf a, vf b) { return select_(a < b, a, b); }
GW_INLINE vf max_(vf a, vf b) { return select_(a > b, a, b); }
GW_INLINE vf sqrt_(vf a) {
  for (int i = 0; i < 16; i++) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
// To the nearest integer, |a| < 2^22 (larger values pass through: they are integers or clamped by the caller).
GW_INLINE vf round_(vf a) {
  const float16 magic = float16{} + 12582912.0f;
  const vf near = (a.v + magic) - magic;
  return select_(max_(a, vf(0.0f) - a) < vf(4194304.0f), near, a);
}
GW_INLINE vf floor_(vf a) {
  const vf r = round_(a);
  return r - zero_unless_(r > a, vf(1.0f));
}
GW_INLINE vf ceil_(vf a) {
  const vf r = round_(a);
  return r + zero_unless_(r < a, vf(1.0f));
}
GW_INLINE int16v to_int(vf a) { return __builtin_convertvector(a.v, int16v); }
GW_INLINE vf scale2_(vf a, vf power) {
  return (float16)((int16v)a.v + to_int(max_(power, vf(-126.0f))) * (1 << 23));
}
GW_INLINE void split2_(vf x, vf &mantissa, vf &exponent) {
  const int16v bits = (int16v)x.v;
  exponent = __builtin_convertvector((bits >> 23) - 127, float16);
  mantissa = (float16)((bits & 0x007fffff) | 0x3f800000);
}
GW_INLINE vf reciprocal_(vf a) { return vf(1.0f) / a; }
GW_INLINE float sum_(vf a) {
  float s[8];
  for (int i = 0; i < 8; i++) s[i] = a.v[i] + a.v[i + 8];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
GW_INLINE vf load_int_(const int32_t *p) {
  int16v i;
  memcpy(&i, p, sizeof i);
  return __builtin_convertvector(i, float16);
}
GW_INLINE void store_int_(int32_t *p, vf a) {
  const int16v i = to_int(a);
  memcpy(p, &i, sizeof i);
}

// Reads lane i from base[index[i] * stride].
GW_INLINE vf gather_(const float *base, const int32_t *index, int stride) {
  vf a;
  for (int i = 0; i < 16; i++) a.v[i] = base[static_cast<int64_t>(index[i]) * stride];
  return a;
}
// Reads lane i from base[i * stride].
GW_INLINE vf strided_(const float *base, int stride) {
  vf a;
  for (int i = 0; i < 16; i++) a.v[i] = base[i * stride];
  return a;
}

// Splits sixteen consecutive groups of three or four floats into columns.
GW_INLINE void split3_(const float *p, vf out[3]) {
  for (int k = 0; k < 3; k++) out[k] = strided_(p + k, 3);
}
GW_INLINE void split4_(const float *p, vf out[4]) {
  for (int k = 0; k < 4; k++) out[k] = strided_(p + k, 4);
}

// Four rows of four pixels: what a pixel has in two or three planes side by side, as the first, second (and third) four
// floats of each row; and back.
template <int PLANES>
GW_INLINE void weave(const vf *planes, vf *out) {
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < PLANES; k++) {
      const int at = PLANES * (i & 3) + k;
      out[at >> 2].v[(i & 12) | (at & 3)] = planes[k].v[i];
    }
}
template <int PLANES>
GW_INLINE void unweave(const vf *in, vf *planes) {
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < PLANES; k++) {
      const int at = PLANES * (i & 3) + k;
      planes[k].v[i] = in[at >> 2].v[(i & 12) | (at & 3)];
    }
}
GW_INLINE void weave2_(vf a, vf b, vf out[2]) {
  const vf planes[2] = {a, b};
  weave<2>(planes, out);
}
GW_INLINE void weave3_(vf a, vf b, vf c, vf out[3]) {
  const vf planes[3] = {a, b, c};
  weave<3>(planes, out);
}
GW_INLINE void unweave2_(const vf in[2], vf out[2]) { unweave<2>(in, out); }
GW_INLINE void unweave3_(const vf in[3], vf out[3]) { unweave<3>(in, out); }

// Stores (a, b) of sixteen pixels as pairs; the i-th pair is that of pixel pair_pixel(i). pair_: one pair in all lanes.
GW_INLINE void store_pairs_(float *out, vf a, vf b) {
  for (int i = 0; i < 16; i++) {
    out[2 * i] = a.v[i];
    out[2 * i + 1] = b.v[i];
  }
}
constexpr int pair_pixel(int i) { return i; }
GW_INLINE vf pair_(const float *p) {
  const float a = p[0], b = p[1];
  return float16{a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b};
}

// Four times four floats side by side; spread_: the K-th of each four in all its lanes; start_quads_: fours whose first two
// floats are those of a and b.
GW_INLINE vf load_quads_(const float *a, const float *b, const float *c, const float *d) {
  return float16{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]};
}
GW_INLINE void store_quads_(vf x, float *a, float *b, float *c, float *d) {
  for (int k = 0; k < 4; k++) a[k] = x.v[k], b[k] = x.v[4 + k], c[k] = x.v[8 + k], d[k] = x.v[12 + k];
}
template <int K>
GW_INLINE vf spread_(vf x) {
  for (int i = 0; i < 16; i += 4) x.v[i] = x.v[i + 1] = x.v[i + 2] = x.v[i + 3] = x.v[i + K];
  return x;
}
GW_INLINE vf start_quads_(vf a, vf b, vf x) {
  for (int i = 0; i < 16; i += 4) x.v[i] = a.v[i], x.v[i + 1] = b.v[i + 1];
  return x;
}

// The bits 0, 4, 8, ... of x side by side.
GW_INLINE uint32_t every_fourth_(uint64_t x) {
  x &= 0x1111111111111111u;
  x = (x | x >> 3) & 0x0303030303030303u;
  x = (x | x >> 6) & 0x000f000f000f000fu;
  x = (x | x >> 12) & 0x000000ff000000ffu;
  return static_cast<uint32_t>(x | x >> 24) & 0xffffu;
}
// Appends, to the list of each block named in `blocks`, those of first..first+15 that reach it; hits: see localise.
template <class Lists>
GW_INLINE void append_to_blocks(const uint64_t hits[4], int first, uint32_t blocks, Lists &lists) {
  for (; blocks; blocks &= blocks - 1) {
    const int block = __builtin_ctz(blocks);
    for (uint32_t in = every_fourth_(hits[block & 3] >> (block >> 2)); in; in &= in - 1)
      lists.values[block][lists.count[block]++] = static_cast<uint32_t>(first + __builtin_ctz(in));
  }
}

// rows[i] = sixteen consecutive floats, row i of the 16 x 16 matrix whose columns are given.
GW_INLINE void transpose_(const vf columns[16], vf rows[16]) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) rows[i].v[j] = columns[j].v[i];
}

}  // namespace GW_ISA
}  // namespace gw
