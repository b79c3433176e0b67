// Copies a matrix so that its columns become rows. One work item writes up to kGroup rows.
#pragma once
#include "ops.h"
#include "simd.h"

namespace {
using namespace map_ops;

constexpr int64_t kSide = kLanes;  // of the blocks that are turned at once

inline void turn_any(const float* from, int64_t stride, float* into, int64_t rows, int64_t high, int64_t wide) {
  for (int64_t j = 0; j < wide; ++j) {
    for (int64_t i = 0; i < high; ++i) into[j * rows + i] = from[i * stride + j];
  }
}

#if defined(__AVX512F__)
inline __m512 pair_low(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

inline __m512 pair_high(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// Turns the 4 x 4 numbers in every 128 bits of four registers, then the 4 x 4 groups of 128 bits.
inline void turn_block(const float* from, int64_t stride, float* into, int64_t rows) {
  __m512 a[kSide], b[kSide];
  for (int k = 0; k < kSide; ++k) a[k] = _mm512_loadu_ps(from + k * stride);
  for (int k = 0; k < kSide; k += 4) {
    const __m512 low = _mm512_unpacklo_ps(a[k], a[k + 1]), high = _mm512_unpackhi_ps(a[k], a[k + 1]);
    const __m512 low2 = _mm512_unpacklo_ps(a[k + 2], a[k + 3]), high2 = _mm512_unpackhi_ps(a[k + 2], a[k + 3]);
    b[k] = pair_low(low, low2);
    b[k + 1] = pair_high(low, low2);
    b[k + 2] = pair_low(high, high2);
    b[k + 3] = pair_high(high, high2);
  }
  for (int k = 0; k < 4; ++k) {
    const __m512 even = _mm512_shuffle_f32x4(b[k], b[k + 4], 0x88), odd = _mm512_shuffle_f32x4(b[k], b[k + 4], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(b[k + 8], b[k + 12], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(b[k + 8], b[k + 12], 0xdd);
    _mm512_storeu_ps(into + k * rows, _mm512_shuffle_f32x4(even, even2, 0x88));
    _mm512_storeu_ps(into + (k + 4) * rows, _mm512_shuffle_f32x4(odd, odd2, 0x88));
    _mm512_storeu_ps(into + (k + 8) * rows, _mm512_shuffle_f32x4(even, even2, 0xdd));
    _mm512_storeu_ps(into + (k + 12) * rows, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
  }
}
#elif defined(__AVX2__)
// Turns the 4 x 4 numbers in every 128 bits of eight registers, then the 2 x 2 groups of 128 bits.
inline void turn_block(const float* from, int64_t stride, float* into, int64_t rows) {
  __m256 a[kSide], b[kSide];
  for (int k = 0; k < kSide; ++k) a[k] = _mm256_loadu_ps(from + k * stride);
  for (int k = 0; k < kSide; k += 4) {
    const __m256 low = _mm256_unpacklo_ps(a[k], a[k + 1]), high = _mm256_unpackhi_ps(a[k], a[k + 1]);
    const __m256 low2 = _mm256_unpacklo_ps(a[k + 2], a[k + 3]), high2 = _mm256_unpackhi_ps(a[k + 2], a[k + 3]);
    b[k] = _mm256_shuffle_ps(low, low2, 0x44);
    b[k + 1] = _mm256_shuffle_ps(low, low2, 0xee);
    b[k + 2] = _mm256_shuffle_ps(high, high2, 0x44);
    b[k + 3] = _mm256_shuffle_ps(high, high2, 0xee);
  }
  for (int k = 0; k < 4; ++k) {
    _mm256_storeu_ps(into + k * rows, _mm256_permute2f128_ps(b[k], b[k + 4], 0x20));
    _mm256_storeu_ps(into + (k + 4) * rows, _mm256_permute2f128_ps(b[k], b[k + 4], 0x31));
  }
}
#else
inline void turn_block(const float* from, int64_t stride, float* into, int64_t rows) {
  turn_any(from, stride, into, rows, kSide, kSide);
}
#endif

// into[j][i] = from[i][j] for i < high and j < wide; `rows` is the stride of `into`.
inline void turn(const float* from, int64_t stride, float* into, int64_t rows, int64_t high, int64_t wide) {
  for (int64_t i = 0; i < high; i += kSide) {
    const int64_t here = high - i < kSide ? high - i : kSide;
    for (int64_t j = 0; j < wide; j += kSide) {
      const int64_t across = wide - j < kSide ? wide - j : kSide;
      const float* block = from + i * stride + j;
      if (here == kSide && across == kSide) {
        turn_block(block, stride, into + j * rows + i, rows);
      } else {
        turn_any(block, stride, into + j * rows + i, rows, here, across);
      }
    }
  }
}

void transpose(const TransposeCall& call, int64_t item, float*) {
  const int64_t first = item * kGroup, left = call.columns - first;
  turn(call.from + first, call.stride, call.into + first * call.rows, call.rows, call.rows, left < kGroup ? left : kGroup);
}

}  // namespace
