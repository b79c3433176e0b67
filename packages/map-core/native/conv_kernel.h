// The depthwise causal convolution over one work item: one batch element, up to kGroup channels, all time steps.
// The weights of a vector of channels stay in registers over time when their number is known at compile time.
#pragma once
#include "items.h"

namespace {

// One vector of channels and how far its taps reach.
struct Reach {
  int64_t batch, channel, count, length, taps;
  bool reverse;

  // The step that lies `back` steps before t in the order of the convolution.
  int64_t before(int64_t t, int64_t back) const { return reverse ? t + back : t - back; }
  int64_t after(int64_t t, int64_t back) const { return reverse ? t - back : t + back; }
  bool has(int64_t t) const { return t >= 0 && t < length; }
  // Whether all taps find a step, before and after t.
  bool inside(int64_t t) const { return t >= taps - 1 && t <= length - taps; }
};

inline Reach reach_at(const ConvCall& call, const Item& item, int64_t channel) {
  const int64_t left = item.last - channel, count = left < kLanes ? left : kLanes;
  return {item.batch, channel, count, call.length, call.taps, call.reverse != 0};
}

inline const float* place(const Rows& rows, const Reach& at, int64_t t) {
  return row(rows, at.batch, t) + at.channel;
}

inline float* place(float* contiguous, const ConvCall& call, const Reach& at, int64_t t) {
  return contiguous + (at.batch * call.length + t) * call.channels + at.channel;
}

// kTaps is the number of taps, or 0 when it is only known at run time; the last one multiplies the present step.
template <int kTaps>
inline vf convolve(const ConvCall& call, const Reach& at, const vf* weight, vf bias, int64_t t) {
  const int64_t taps = kTaps ? kTaps : at.taps;
  const bool inside = at.inside(t);
  vf y = bias;
#pragma GCC unroll 4
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t from = at.before(t, taps - 1 - tap);
    if (inside || at.has(from)) y += weight[tap] * load(place(call.x, at, from), at.count);
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

// Asks for the place where a step will be written.
__attribute__((always_inline)) inline void fetch_to_write(float* contiguous, const ConvCall& call, const Reach& at,
                                                          int64_t t) {
  __builtin_prefetch(place(contiguous, call, at, t), 1);
}

template <int kTaps>
void conv_forward_lanes(const ConvCall call, const Reach at, vf* scratch) {
  vf fixed[kTaps ? kTaps : 1];
  vf* weight = kTaps ? fixed : scratch;
  load_weights<kTaps>(call, at, weight);
  const vf bias = call.bias ? load(call.bias + at.channel, at.count) : vf{};
  for (int64_t t = 0; t < call.length; ++t) {
    if (t + kAhead < call.length) {
      fetch(call.x, at, t + kAhead);
      fetch_to_write(call.out, call, at, t + kAhead);
    }
    vf y = convolve<kTaps>(call, at, weight, bias, t);
    if (call.silu) y *= sigmoid(y);
    store(place(call.out, call, at, t), y, at.count);
  }
}

template <int kTaps>
void conv_backward_lanes(const ConvCall call, const Reach at, vf* scratch) {
  const int64_t taps = kTaps ? kTaps : at.taps;
  vf fixed[kTaps ? kTaps : 1], fixed_grad[kTaps ? kTaps : 1];
  vf* weight = kTaps ? fixed : scratch;
  vf* grad_weight = kTaps ? fixed_grad : scratch + taps;
  vf* grad_y = scratch + 2 * taps;  // of every step, before the activation
  load_weights<kTaps>(call, at, weight);
  const vf bias = call.bias ? load(call.bias + at.channel, at.count) : vf{};
  vf grad_bias = {};
  for (int64_t tap = 0; tap < taps; ++tap) grad_weight[tap] = vf{};
  for (int64_t t = 0; t < call.length; ++t) {
    if (t + kAhead < call.length) {
      fetch(call.x, at, t + kAhead);
      fetch(call.grad_out, at, t + kAhead);
    }
    vf grad = load(place(call.grad_out, at, t), at.count);
    if (call.silu) {
      const vf y = convolve<kTaps>(call, at, weight, bias, t), gate = sigmoid(y);
      grad *= gate * (1.0f + y * (1.0f - gate));
    }
    grad_y[t] = grad;
    grad_bias += grad;
  }
  for (int64_t t = 0; t < call.length; ++t) {
    if (t + kAhead < call.length) fetch_to_write(call.grad_x, call, at, t + kAhead);
    const vf x = load(place(call.x, at, t), at.count);
    const bool inside = at.inside(t);
    vf grad_x = {};
#pragma GCC unroll 4
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t to = at.after(t, taps - 1 - tap);
      if (!inside && !at.has(to)) continue;
      grad_x += weight[tap] * grad_y[to];
      grad_weight[tap] += x * grad_y[to];
    }
    store(place(call.grad_x, call, at, t), grad_x, at.count);
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    float* part = call.part_weight + (at.batch * taps + tap) * call.channels + at.channel;
    store(part, grad_weight[tap], at.count);
  }
  store(call.part_bias + at.batch * call.channels + at.channel, grad_bias, at.count);
}

int64_t conv_forward_scratch(const ConvCall& call) { return call.taps * kLanes; }
int64_t conv_backward_scratch(const ConvCall& call) { return (call.length + 2 * call.taps) * kLanes; }

void conv_forward(const ConvCall& call, int64_t number, float* scratch) {
  const Item item = locate(number, call.channels);
  const auto run = call.taps == 4 ? conv_forward_lanes<4> : conv_forward_lanes<0>;
  for (int64_t channel = item.first; channel < item.last; channel += kLanes) {
    run(call, reach_at(call, item, channel), reinterpret_cast<vf*>(scratch));
  }
}

void conv_backward(const ConvCall& call, int64_t number, float* scratch) {
  const Item item = locate(number, call.channels);
  const auto run = call.taps == 4 ? conv_backward_lanes<4> : conv_backward_lanes<0>;
  for (int64_t channel = item.first; channel < item.last; channel += kLanes) {
    run(call, reach_at(call, item, channel), reinterpret_cast<vf*>(scratch));
  }
}

}  // namespace
