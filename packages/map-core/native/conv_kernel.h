// The depthwise causal convolution over one work item: one batch element, up to kGroup channels, all time steps.
#pragma once
#include "ops.h"
#include "scan_kernel.h"
#include "simd.h"

namespace {

// Step that tap `tap` reads for output step t; outside [0, length) it reads zero.
inline int64_t source_step(const ConvCall& call, int64_t t, int64_t tap) {
  const int64_t back = call.taps - 1 - tap;
  return call.reverse ? t + back : t - back;
}

inline vf convolve(const ConvCall& call, const Item& item, int64_t channel, int64_t count, int64_t t) {
  vf y = call.bias ? load(call.bias + channel, count) : vf{};
  for (int64_t tap = 0; tap < call.taps; ++tap) {
    const int64_t from = source_step(call, t, tap);
    if (from < 0 || from >= call.length) continue;
    y += load(call.weight + tap * call.channels + channel, count) *
         load(row(call.x, item.batch, from) + channel, count);
  }
  return y;
}

void conv_forward(const ConvCall& call, int64_t number, float*) {
  const Item item = locate(number, call.channels);
  for (int64_t t = 0; t < call.length; ++t) {
    float* out = call.out + (item.batch * call.length + t) * call.channels;
    for (int64_t channel = item.first; channel < item.last; channel += kLanes) {
      const int64_t left = item.last - channel, count = left < kLanes ? left : kLanes;
      vf y = convolve(call, item, channel, count, t);
      if (call.silu) y *= sigmoid(y);
      store(out + channel, y, count);
    }
  }
}

int64_t conv_backward_scratch(const ConvCall& call) { return (call.length + call.taps + 1) * kLanes; }

void conv_backward(const ConvCall& call, int64_t number, float* scratch) {
  const Item item = locate(number, call.channels);
  vf* grad_y = reinterpret_cast<vf*>(scratch);
  vf* grad_weight = grad_y + call.length;
  for (int64_t channel = item.first; channel < item.last; channel += kLanes) {
    const int64_t left = item.last - channel, count = left < kLanes ? left : kLanes;
    vf grad_bias = {};
    for (int64_t tap = 0; tap < call.taps; ++tap) grad_weight[tap] = vf{};
    for (int64_t t = 0; t < call.length; ++t) {
      vf grad = load(row(call.grad_out, item.batch, t) + channel, count);
      if (call.silu) {
        const vf y = convolve(call, item, channel, count, t), gate = sigmoid(y);
        grad *= gate * (1.0f + y * (1.0f - gate));
      }
      grad_y[t] = grad;
      grad_bias += grad;
    }
    for (int64_t t = 0; t < call.length; ++t) {
      const vf x = load(row(call.x, item.batch, t) + channel, count);
      vf grad_x = {};
      for (int64_t tap = 0; tap < call.taps; ++tap) {
        const int64_t back = call.taps - 1 - tap, to = call.reverse ? t - back : t + back;
        if (to < 0 || to >= call.length) continue;
        grad_x += load(call.weight + tap * call.channels + channel, count) * grad_y[to];
        grad_weight[tap] += x * grad_y[to];
      }
      store(call.grad_x + (item.batch * call.length + t) * call.channels + channel, grad_x, count);
    }
    for (int64_t tap = 0; tap < call.taps; ++tap) {
      store(call.part_weight + (item.batch * call.taps + tap) * call.channels + channel, grad_weight[tap], count);
    }
    store(call.part_bias + item.batch * call.channels + channel, grad_bias, count);
  }
}

}  // namespace
