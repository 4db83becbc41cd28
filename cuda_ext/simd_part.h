// Loads and stores of the first lanes only, and of what is not 32-bit floats side by side.
#pragma once
#include "simd.h"

namespace gw {
namespace GW_ISA {

GW_INLINE int lanes_left(int64_t count) { return count < LANES ? static_cast<int>(count) : LANES; }

// The first `count` (1..16) lanes from memory, zeros in the others; nothing beyond them is touched.
#if defined(GW_USE_AVX512)
GW_INLINE __mmask16 first_lanes(int count) { return static_cast<__mmask16>(0xffffu >> (LANES - count)); }
GW_INLINE vf load_first_(const float *p, int count) {
  return count == LANES ? load_(p) : vf(_mm512_maskz_loadu_ps(first_lanes(count), p));
}
GW_INLINE void store_first_(float *p, int count, vf x) {
  if (count == LANES) return store_(p, x);
  _mm512_mask_storeu_ps(p, first_lanes(count), x.v);
}
#else
GW_INLINE vf load_first_(const float *p, int count) {
  if (count == LANES) return load_(p);
  float lane[LANES] = {};
  for (int i = 0; i < count; i++) lane[i] = p[i];
  return load_(lane);
}
GW_INLINE void store_first_(float *p, int count, vf x) {
  if (count == LANES) return store_(p, x);
  float lane[LANES];
  store_(lane, x);
  for (int i = 0; i < count; i++) p[i] = lane[i];
}
#endif

// Lane i of the answer is lane index[i] (0..15) of the table.
#if defined(GW_USE_AVX512)
GW_INLINE vf lookup_(vf table, const int32_t *index) { return _mm512_permutexvar_ps(_mm512_loadu_si512(index), table.v); }
#elif defined(GW_USE_AVX2)
GW_INLINE __m256 lookup_half(vf table, const int32_t *index) {
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(index));
  const __m256 low = _mm256_permutevar8x32_ps(table.a, at), high = _mm256_permutevar8x32_ps(table.b, at);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
GW_INLINE vf lookup_(vf table, const int32_t *index) { return {lookup_half(table, index), lookup_half(table, index + 8)}; }
#else
GW_INLINE vf lookup_(vf table, const int32_t *index) {
  vf found;
  for (int i = 0; i < LANES; i++) found.v[i] = table.v[index[i]];
  return found;
}
#endif

// Sums of sixteen pairs of neighbours; lanes in 0..255.99 cut to whole numbers.
#if defined(GW_USE_AVX512)
GW_INLINE vf add_pairs_(const float *p) {
  const __m512 x = _mm512_loadu_ps(p), y = _mm512_loadu_ps(p + 16);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return _mm512_add_ps(_mm512_permutex2var_ps(x, even, y), _mm512_permutex2var_ps(x, odd, y));
}
GW_INLINE void store_bytes_(uint8_t *p, vf x) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x.v)));
}
#elif defined(GW_USE_AVX2)
GW_INLINE __m256 add_pairs_half(const float *p) {
  const __m256 mixed = _mm256_hadd_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}
GW_INLINE vf add_pairs_(const float *p) { return {add_pairs_half(p), add_pairs_half(p + 16)}; }
GW_INLINE void store_bytes_(uint8_t *p, vf x) {
  const __m256i mixed = _mm256_packs_epi32(_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b));
  const __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
#else
GW_INLINE vf add_pairs_(const float *p) {
  float lane[LANES];
  for (int i = 0; i < LANES; i++) lane[i] = p[2 * i] + p[2 * i + 1];
  return load_(lane);
}
GW_INLINE void store_bytes_(uint8_t *p, vf x) {
  int32_t lane[LANES];
  store_int_(lane, x);
  for (int i = 0; i < LANES; i++) p[i] = static_cast<uint8_t>(lane[i]);
}
#endif

}  // namespace GW_ISA
}  // namespace gw
