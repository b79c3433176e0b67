// The depthwise causal convolution over one work item: one batch element, up to kGroup channels, all time steps.
// The weights of a vector of channels stay in registers over time when their number is known at compile time.
#pragma once
#include "items.h"

namespace {

// One vector of channels and how far its taps reach.
struct Reach {
  int64_t batch, channel, count, length, taps;
  bool reverse;

  // The step `back` steps before t in the order of the convolution.
  int64_t before(int64_t t, int64_t back) const { return reverse ? t + back : t - back; }
  int64_t after(int64_t t, int64_t back) const { return reverse ? t - back : t + back; }
  bool has(int64_t t) const { return t >= 0 && t < length; }
  // Whether all taps reach existing steps, before and after t.
  bool inside(int64_t t) const { return t >= taps - 1 && t <= length - taps; }
};

inline Reach reach_at(const ConvCall& call, const Item& item, int64_t channel) {
  const int64_t left = item.last - channel, count = left < kLanes ? left : kLanes;
  return {item.batch, channel, count, call.length, call.taps, call.reverse != 0};
}

template <class T>
inline vf load(const Rows& rows, const Reach& at, int64_t t) {
  return load(row<T>(rows, at.batch, t) + at.channel, at.count);
}

// Where a vector of channels is written.
template <class T>
inline T* place(void* contiguous, const ConvCall& call, const Reach& at, int64_t t) {
  return static_cast<T*>(contiguous) + (at.batch * call.length + t) * call.channels + at.channel;
}

// kTaps is the number of taps, or 0 when it is only known at run time; the last tap multiplies the present step.
template <class T, int kTaps>
inline vf convolve(const ConvCall& call, const Reach& at, const vf* weight, vf bias, int64_t t) {
  const int64_t taps = kTaps ? kTaps : at.taps;
  const bool inside = at.inside(t);
  vf y = bias;
#pragma GCC unroll 4
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t from = at.before(t, taps - 1 - tap);
    if (inside || at.has(from)) y += weight[tap] * load<T>(call.x, at, from);
  }
  return y;
}

template <int kTaps>
inline void load_weights(const ConvCall& call, const Reach& at, vf* weight) {
  const int64_t taps = kTaps ? kTaps : at.taps;
  for (int64_t tap = 0; tap < taps; ++tap) {
    weight[tap] = load(call.weight + tap * call.channels + at.channel, at.count);
  }
}

template <class T, int kTaps>
void conv_forward_tile(const ConvCall call, const Reach at, int64_t start, int64_t end, vf* scratch) {
  vf fixed[kTaps ? kTaps : 1];
  vf* weight = kTaps ? fixed : scratch;
  load_weights<kTaps>(call, at, weight);
  const vf bias = call.bias ? load(call.bias + at.channel, at.count) : vf{};
  for (int64_t t = start; t < end; ++t) {
    if (t + kTile < call.length) {
      fetch<T>(call.x, at, t + kTile);
      __builtin_prefetch(place<T>(call.out, call, at, t + kTile), 1);
    }
    vf y = convolve<T, kTaps>(call, at, weight, bias, t);
    if (call.silu) y *= sigmoid(y);
    store(place<T>(call.out, call, at, t), y, at.count);
  }
}

// The buffers of backward for a vector of channels; `grad_y` covers every step, before the activation.
struct ConvRoom {
  vf *weight, *grad_weight, *grad_bias, *grad_y;

  ConvRoom(const ConvCall& call, vf* scratch, int64_t vector) {
    weight = scratch;
    grad_weight = scratch + call.taps + vector * (call.taps + 1 + call.length);
    grad_bias = grad_weight + call.taps;
    grad_y = grad_bias + 1;
  }
};

// Propagates the gradient of a tile's outputs through the activation.
template <class T, int kTaps>
void conv_activation_tile(const ConvCall call, const Reach at, int64_t start, int64_t end, const ConvRoom room) {
  vf fixed[kTaps ? kTaps : 1];
  vf* weight = kTaps ? fixed : room.weight;
  load_weights<kTaps>(call, at, weight);
  const vf bias = call.bias ? load(call.bias + at.channel, at.count) : vf{};
  vf grad_bias = *room.grad_bias;
  for (int64_t t = start; t < end; ++t) {
    if (t + kTile < call.length) {
      fetch<T>(call.x, at, t + kTile);
      fetch<T>(call.grad_out, at, t + kTile);
    }
    vf grad = load<T>(call.grad_out, at, t);
    if (call.silu) {
      const vf y = convolve<T, kTaps>(call, at, weight, bias, t), gate = sigmoid(y);
      grad *= gate * (1.0f + y * (1.0f - gate));
    }
    room.grad_y[t] = grad;
    grad_bias += grad;
  }
  *room.grad_bias = grad_bias;
}

template <class T, int kTaps>
void conv_backward_tile(const ConvCall call, const Reach at, int64_t start, int64_t end, const ConvRoom room) {
  const int64_t taps = kTaps ? kTaps : at.taps;
  vf fixed[kTaps ? kTaps : 1], fixed_grad[kTaps ? kTaps : 1];
  vf *weight = kTaps ? fixed : room.weight, *grad_weight = kTaps ? fixed_grad : room.grad_weight;
  load_weights<kTaps>(call, at, weight);
  for (int64_t tap = 0; tap < taps; ++tap) grad_weight[tap] = room.grad_weight[tap];
  for (int64_t t = start; t < end; ++t) {
    if (t + kTile < call.length) __builtin_prefetch(place<T>(call.grad_x, call, at, t + kTile), 1);
    const vf x = load<T>(call.x, at, t);
    const bool inside = at.inside(t);
    vf grad_x = {};
#pragma GCC unroll 4
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t to = at.after(t, taps - 1 - tap);
      if (!inside && !at.has(to)) continue;
      grad_x += weight[tap] * room.grad_y[to];
      grad_weight[tap] += x * room.grad_y[to];
    }
    store(place<T>(call.grad_x, call, at, t), grad_x, at.count);
  }
  for (int64_t tap = 0; tap < taps; ++tap) room.grad_weight[tap] = grad_weight[tap];
}

// Runs over all vectors of channels of a tile of steps, then over the next tile: rows of steps lie far apart, and the
// vectors of one share lines of the cache.
template <class Run>
inline void by_tiles(const ConvCall& call, const Item& item, const Run& run) {
  for (int64_t start = 0; start < call.length; start += kTile) {
    const int64_t end = start + kTile < call.length ? start + kTile : call.length;
    int64_t vector = 0;
    for (int64_t channel = item.first; channel < item.last; channel += kLanes, ++vector) {
      run(reach_at(call, item, channel), start, end, vector);
    }
  }
}

int64_t conv_forward_scratch(const ConvCall& call) { return call.taps * kLanes; }
int64_t conv_backward_scratch(const ConvCall& call) {
  return (call.taps + kVectors * (call.taps + 1 + call.length)) * kLanes;
}

template <class T, int kTaps>
void conv_forward_of(const ConvCall& call, int64_t number, float* scratch) {
  by_tiles(call, locate(number, call.channels), [&](const Reach& at, int64_t start, int64_t end, int64_t) {
    conv_forward_tile<T, kTaps>(call, at, start, end, reinterpret_cast<vf*>(scratch));
  });
}

template <class T, int kTaps>
void conv_backward_of(const ConvCall& call, int64_t number, float* scratch) {
  const Item item = locate(number, call.channels);
  vf* rooms = reinterpret_cast<vf*>(scratch);
  for (int64_t vector = 0; vector < kVectors; ++vector) {
    const ConvRoom room(call, rooms, vector);
    memset(room.grad_weight, 0, sizeof(vf) * static_cast<size_t>(call.taps + 1));  // and grad_bias after it
  }
  by_tiles(call, item, [&](const Reach& at, int64_t start, int64_t end, int64_t vector) {
    conv_activation_tile<T, kTaps>(call, at, start, end, ConvRoom(call, rooms, vector));
  });
  by_tiles(call, item, [&](const Reach& at, int64_t start, int64_t end, int64_t vector) {
    conv_backward_tile<T, kTaps>(call, at, start, end, ConvRoom(call, rooms, vector));
  });
  int64_t vector = 0;
  for (int64_t channel = item.first; channel < item.last; channel += kLanes, ++vector) {
    const Reach at = reach_at(call, item, channel);
    const ConvRoom room(call, rooms, vector);
    for (int64_t tap = 0; tap < call.taps; ++tap) {
      float* part = call.part_weight + (at.batch * call.taps + tap) * call.channels + at.channel;
      store(part, room.grad_weight[tap], at.count);
    }
    store(call.part_bias + at.batch * call.channels + at.channel, *room.grad_bias, at.count);
  }
}

using ConvRun = void (*)(const ConvCall&, int64_t, float*);

template <class T>
constexpr ConvRun conv_forward_with(int64_t taps) {
  return taps == 4 ? conv_forward_of<T, 4> : conv_forward_of<T, 0>;
}

template <class T>
constexpr ConvRun conv_backward_with(int64_t taps) {
  return taps == 4 ? conv_backward_of<T, 4> : conv_backward_of<T, 0>;
}

void conv_forward(const ConvCall& call, int64_t item, float* scratch) {
  (call.half ? conv_forward_with<uint16_t> : conv_forward_with<float>)(call.taps)(call, item, scratch);
}

void conv_backward(const ConvCall& call, int64_t item, float* scratch) {
  (call.half ? conv_backward_with<uint16_t> : conv_backward_with<float>)(call.taps)(call, item, scratch);
}

}  // namespace
