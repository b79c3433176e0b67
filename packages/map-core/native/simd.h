// A vector of kLanes floats and the functions that the kernels need on it, written with compiler vector types.
// Included once per instruction set; includes no C++ library header, so that no inline function compiled for a
// newer processor can be linked into the portable path.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

// Subtracts zero instead of adding it: that changes no number, not even -0, and so needs no instruction.
inline vf splat(float x) { return x - vf{}; }

inline vf load_all(const float* from) {
  vf v;
  memcpy(&v, from, sizeof v);
  return v;
}

inline void store_all(float* to, vf v) { memcpy(to, &v, sizeof v); }

// The first `count` lanes, or all if `count` is larger; the others are zero, and their memory is not touched.
#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xffff : (1 << count) - 1);
}

inline vf load(const float* from, int64_t count) {
  return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(first_lanes(count), from));
}

inline void store(float* to, vf v, int64_t count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), reinterpret_cast<__m512>(v));
}
#elif defined(__AVX2__)
inline __m256i first_lanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

// AMD's processors need tens of instructions for a masked store.
inline vf load(const float* from, int64_t count) {
  if (count >= kLanes) return load_all(from);
  return reinterpret_cast<vf>(_mm256_maskload_ps(from, first_lanes(count)));
}

inline void store(float* to, vf v, int64_t count) {
  if (count >= kLanes) return store_all(to, v);
  _mm256_maskstore_ps(to, first_lanes(count), reinterpret_cast<__m256>(v));
}
#else
inline vf load(const float* from, int64_t count) {
  if (count >= kLanes) return load_all(from);
  vf v = {};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

inline void store(float* to, vf v, int64_t count) {
  if (count >= kLanes) return store_all(to, v);
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
#endif

// The same for bfloat16, the upper half of a float: read exactly, written rounded to the nearest, ties to even.
inline vf widen(vh half) { return reinterpret_cast<vf>(__builtin_convertvector(half, vu) << 16); }

inline vh narrow(vf v) {
  const vu bits = reinterpret_cast<vu>(v), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : vu{} + 0x7fc0, vh);  // NaN could round to infinity
}

inline vf load(const uint16_t* from, int64_t count) {
  vh half = {};
#if defined(__AVX512F__)
  half = reinterpret_cast<vh>(_mm256_maskz_loadu_epi16(first_lanes(count), from));
#else
  if (count >= kLanes) {
    memcpy(&half, from, sizeof half);
  } else {
    for (int64_t i = 0; i < count; ++i) half[i] = from[i];
  }
#endif
  return widen(half);
}

inline void store(uint16_t* to, vf v, int64_t count) {
  const vh half = narrow(v);
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(to, first_lanes(count), reinterpret_cast<__m256i>(half));
#else
  if (count >= kLanes) {
    memcpy(to, &half, sizeof half);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = half[i];
  }
#endif
}

// Sums over the lanes of four vectors, in two steps so that few vectors are alive at once: quad_sum leaves partial
// sums of its four in every 128 bits, join_quads turns kLanes / 4 of these into one vector of kLanes sums.
#if defined(__AVX512F__)
inline vf quad_sum(vf a, vf b, vf c, vf d) {
  const __m512 wa = reinterpret_cast<__m512>(a), wb = reinterpret_cast<__m512>(b);
  const __m512 wc = reinterpret_cast<__m512>(c), wd = reinterpret_cast<__m512>(d);
  const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(wa, wb), _mm512_unpackhi_ps(wa, wb)));
  const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(wc, wd), _mm512_unpackhi_ps(wc, wd)));
  return reinterpret_cast<vf>(_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                                            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd))));
}

inline vf join_quads(const vf* q) {
  const __m512 q0 = reinterpret_cast<__m512>(q[0]), q1 = reinterpret_cast<__m512>(q[1]);
  const __m512 q2 = reinterpret_cast<__m512>(q[2]), q3 = reinterpret_cast<__m512>(q[3]);
  const __m512 low = _mm512_add_ps(_mm512_shuffle_f32x4(q0, q1, 0x44), _mm512_shuffle_f32x4(q0, q1, 0xee));
  const __m512 high = _mm512_add_ps(_mm512_shuffle_f32x4(q2, q3, 0x44), _mm512_shuffle_f32x4(q2, q3, 0xee));
  return reinterpret_cast<vf>(
      _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd)));
}
#elif defined(__AVX2__)
inline vf quad_sum(vf a, vf b, vf c, vf d) {
  const __m256 wa = reinterpret_cast<__m256>(a), wb = reinterpret_cast<__m256>(b);
  const __m256 wc = reinterpret_cast<__m256>(c), wd = reinterpret_cast<__m256>(d);
  const __m256d ab = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(wa, wb), _mm256_unpackhi_ps(wa, wb)));
  const __m256d cd = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(wc, wd), _mm256_unpackhi_ps(wc, wd)));
  return reinterpret_cast<vf>(_mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
                                            _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd))));
}

inline vf join_quads(const vf* q) {
  const __m256 q0 = reinterpret_cast<__m256>(q[0]), q1 = reinterpret_cast<__m256>(q[1]);
  return reinterpret_cast<vf>(
      _mm256_add_ps(_mm256_permute2f128_ps(q0, q1, 0x20), _mm256_permute2f128_ps(q0, q1, 0x31)));
}
#else
inline vf quad_sum(vf a, vf b, vf c, vf d) {
  const vf low = {a[0], b[0], c[0], d[0]}, next = {a[1], b[1], c[1], d[1]};
  const vf third = {a[2], b[2], c[2], d[2]}, last = {a[3], b[3], c[3], d[3]};
  return (low + third) + (next + last);
}

inline vf join_quads(const vf* q) { return q[0]; }
#endif

// x within [low, high]; NaN stays, because the instructions return their second operand then.
inline vf clamp(vf x, float low, float high) {
#if defined(__AVX512F__)
  const __m512 above = _mm512_max_ps(_mm512_set1_ps(low), reinterpret_cast<__m512>(x));
  return reinterpret_cast<vf>(_mm512_min_ps(_mm512_set1_ps(high), above));
#elif defined(__AVX2__)
  const __m256 above = _mm256_max_ps(_mm256_set1_ps(low), reinterpret_cast<__m256>(x));
  return reinterpret_cast<vf>(_mm256_min_ps(_mm256_set1_ps(high), above));
#else
  x = x < splat(low) ? splat(low) : x;
  return x > splat(high) ? splat(high) : x;
#endif
}

inline vf larger(vf a, vf b) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// 2^x to about one unit in the last place, exact at 0.
#if defined(__AVX512F__)
alignas(64) constexpr float kRoots[32] = {  // 2^(i / 32)
    1.0f, 1.02189715f, 1.04427378f, 1.0671404f, 1.09050773f, 1.11438674f, 1.13878863f, 1.16372486f,
    1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f, 1.35425555f, 1.38390988f,
    1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f, 1.57598085f, 1.61049033f, 1.64575548f,
    1.68179283f, 1.7186193f, 1.75625216f, 1.79470908f, 1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f};

// The nearest multiple of 1/32 comes from the table and the exponent, the rest from a polynomial on [-1/64, 1/64].
inline vf exp2(vf x) {
  asm("" : "+v"(x));  // else x may be a product that is never rounded, whose extra digits matter in f when it is huge
  const vf shifted = x + 393216.0f;  // 1.5 * 2^18 rounds x to 1/32, its multiple in the low bits
  const vf near = shifted - 393216.0f, f = x - near;
  const __m512 root = _mm512_permutex2var_ps(_mm512_load_ps(kRoots), reinterpret_cast<__m512i>(shifted),
                                             _mm512_load_ps(kRoots + 16));
  const vf scale = reinterpret_cast<vf>(root), p = 0.69315733f + 0.2402265f * f;
  return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(scale + scale * f * p),
                                               reinterpret_cast<__m512>(near)));
}

inline vf exp2_between(vf x) { return exp2(x); }
#else
// A polynomial on [-1/2, 1/2] times a power of two; for x within [-126, 127]. Its terms are paired into a short chain,
// of which the processor has several in flight.
inline vf exp2_between(vf x) {
  constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23 rounds x to an integer; 127 makes it an exponent
  const vf shifted = x + kRound, f = x - (shifted - kRound), square = f * f;
  const vf last = 1.3264730e-3f * f + 9.6715130e-3f, middle = 5.5507336e-2f * f + 2.4022242e-1f;
  const vf p = (last * square + middle) * square + (6.9314700e-1f * f + 1.0f);
  return p * reinterpret_cast<vf>(reinterpret_cast<vi>(shifted) << 23);  // a sum of integers would lose NaN
}

inline vf exp2(vf x) { return exp2_between(clamp(x, -126.0f, 127.0f)); }
#endif

// e^x of any number: infinite beyond the largest exponent, as a gate needs it to close.
inline vf exp(vf x) {
#if defined(__AVX512F__)
  return exp2(clamp(x, -150.0f, 150.0f) * kLog2E);
#else
  const vf y = exp2(x * kLog2E);
  return x > splat(88.0f) ? splat(__builtin_inff()) : y;
#endif
}

struct Softplus {
  vf value, slope;
};

// log(1 + e^x) and its derivative, both from e^-|x|, which cannot overflow.
inline Softplus softplus(vf x) {
  const vi positive = x > splat(0.0f);
  const vf t = exp(positive ? -x : x);
  vf p = splat(5.3648325e-3f);  // log(1 + t) = t (1 + t p(t)) on [0, 1]
  p = p * t - 3.0065823e-2f;
  p = p * t + 7.9204589e-2f;
  p = p * t - 1.3753806e-1f;
  p = p * t + 1.9153666e-1f;
  p = p * t - 2.4857163e-1f;
  p = p * t + 3.3321324e-1f;
  p = p * t - 4.9999648e-1f;
  p = p * t + 1.0f;
  return {p * t + (positive ? x : splat(0.0f)), (positive ? splat(1.0f) : t) / (1.0f + t)};
}

inline vf sigmoid(vf x) { return 1.0f / (exp(-x) + 1.0f); }

}  // namespace
