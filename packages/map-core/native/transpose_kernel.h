// Copies a matrix so that its columns become rows. One work item writes up to kGroup rows.
#pragma once
#include "ops.h"
#include "simd.h"

namespace {
using namespace map_ops;

constexpr int64_t kSide = 16;  // of the blocks that are turned at once

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
#else
inline void turn_block(const float* from, int64_t stride, float* into, int64_t rows) {
  turn_any(from, stride, into, rows, kSide, kSide);
}
#endif

void transpose(const TransposeCall& call, int64_t item, float*) {
  const int64_t rows = call.rows, stride = call.stride, first = item * kGroup;
  const int64_t last = first + kGroup < call.columns ? first + kGroup : call.columns;
  for (int64_t i = 0; i < rows; i += kSide) {
    const int64_t high = rows - i < kSide ? rows - i : kSide;
    for (int64_t j = first; j < last; j += kSide) {
      const int64_t wide = last - j < kSide ? last - j : kSide;
      const float* from = call.from + i * stride + j;
      float* into = call.into + j * rows + i;
      if (high == kSide && wide == kSide) {
        turn_block(from, stride, into, rows);
      } else {
        turn_any(from, stride, into, rows, high, wide);
      }
    }
  }
}

}  // namespace
