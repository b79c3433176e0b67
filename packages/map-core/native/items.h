// How work is cut: an item is one batch element and up to kGroup channels, over all time steps.
#pragma once
#include "ops.h"
#include "simd.h"

namespace {
using namespace map_ops;

constexpr int64_t kVectors = kGroup / kLanes;  // vectors of channels in one item
constexpr int64_t kAhead = 8;                  // steps between prefetching a row and using it
constexpr int64_t kTile = 16;                  // steps that are done for all vectors of an item before the next ones

struct Item {
  int64_t batch, group, first, last;  // channels [first, last)
};

inline Item locate(int64_t item, int64_t channels) {
  const int64_t count = groups(channels), group = item % count;
  const int64_t first = group * kGroup, last = first + kGroup;
  return {item / count, group, first, last < channels ? last : channels};
}

// T is the type of a call's void data: float, or uint16_t for bfloat16.
template <class T>
inline const T* row(const Rows& rows, int64_t batch, int64_t step) {
  return static_cast<const T*>(rows.data) + batch * rows.batch_stride + step * rows.step_stride;
}

// Prefetches a vector of channels of a step: rows lie far apart, so the processor does not fetch the next by itself.
// Always inlined because GCC may think that a function that only prefetches has no effect, and drop its calls.
template <class T, class At>
__attribute__((always_inline)) inline void fetch(const Rows& rows, const At& at, int64_t t) {
  if (rows.data) __builtin_prefetch(row<T>(rows, at.batch, t) + at.channel);
}

}  // namespace
