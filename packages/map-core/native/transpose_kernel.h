// Transposes a matrix into a copy. One work item writes up to kGroup rows.
#pragma once
#include "ops.h"
#include "simd.h"

namespace {
using namespace map_ops;

constexpr int64_t kSide = kLanes;  // of the blocks that are transposed at once

inline void turn_any(const float* from, int64_t stride, float* into, int64_t rows, int64_t high, int64_t wide) {
  for (int64_t j = 0; j < wide; ++j) {
    for (int64_t i = 0; i < high; ++i) into[j * rows + i] = from[i * stride + j];
  }
}

#if defined(__AVX2__)
// Within every 128 bits: the first, or last, two numbers of a and b in turn; the first, or last, two of a, then of b.
#if defined(__AVX512F__)
typedef __m512 Register;
inline Register low_of(Register a, Register b) { return _mm512_unpacklo_ps(a, b); }
inline Register high_of(Register a, Register b) { return _mm512_unpackhi_ps(a, b); }
inline Register low_pairs(Register a, Register b) { return _mm512_shuffle_ps(a, b, 0x44); }
inline Register high_pairs(Register a, Register b) { return _mm512_shuffle_ps(a, b, 0xee); }
inline Register read(const float* from) { return _mm512_loadu_ps(from); }
#else
typedef __m256 Register;
inline Register low_of(Register a, Register b) { return _mm256_unpacklo_ps(a, b); }
inline Register high_of(Register a, Register b) { return _mm256_unpackhi_ps(a, b); }
inline Register low_pairs(Register a, Register b) { return _mm256_shuffle_ps(a, b, 0x44); }
inline Register high_pairs(Register a, Register b) { return _mm256_shuffle_ps(a, b, 0xee); }
inline Register read(const float* from) { return _mm256_loadu_ps(from); }
#endif

// Transposes the 4 x 4 numbers in every 128 bits of four registers, then the groups of 128 bits.
inline void turn_block(const float* from, int64_t stride, float* into, int64_t rows) {
  Register b[kSide];
  for (int k = 0; k < kSide; k += 4) {
    const Register a0 = read(from + k * stride), a1 = read(from + (k + 1) * stride);
    const Register a2 = read(from + (k + 2) * stride), a3 = read(from + (k + 3) * stride);
    const Register low = low_of(a0, a1), high = high_of(a0, a1), low2 = low_of(a2, a3), high2 = high_of(a2, a3);
    b[k] = low_pairs(low, low2);
    b[k + 1] = high_pairs(low, low2);
    b[k + 2] = low_pairs(high, high2);
    b[k + 3] = high_pairs(high, high2);
  }
  for (int k = 0; k < 4; ++k) {
#if defined(__AVX512F__)
    const __m512 even = _mm512_shuffle_f32x4(b[k], b[k + 4], 0x88), odd = _mm512_shuffle_f32x4(b[k], b[k + 4], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(b[k + 8], b[k + 12], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(b[k + 8], b[k + 12], 0xdd);
    _mm512_storeu_ps(into + k * rows, _mm512_shuffle_f32x4(even, even2, 0x88));
    _mm512_storeu_ps(into + (k + 4) * rows, _mm512_shuffle_f32x4(odd, odd2, 0x88));
    _mm512_storeu_ps(into + (k + 8) * rows, _mm512_shuffle_f32x4(even, even2, 0xdd));
    _mm512_storeu_ps(into + (k + 12) * rows, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
#else
    _mm256_storeu_ps(into + k * rows, _mm256_permute2f128_ps(b[k], b[k + 4], 0x20));
    _mm256_storeu_ps(into + (k + 4) * rows, _mm256_permute2f128_ps(b[k], b[k + 4], 0x31));
#endif
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
