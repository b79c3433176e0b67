// The selective scan over one work item: one batch element, up to kGroup channels, all time steps.
// The state of a vector of channels stays in registers over time when its size is known at compile time.
//
// The loops take their arguments by value: through a reference they would be reread after every store, which might
// have changed them. Where a step's inputs need a long chain of operations (softplus, gate), a separate stage computes
// them for many steps, because the processor looks ahead less far than one step of the recurrence.
#pragma once
#include "items.h"

namespace {

// One vector of channels of one direction: weights and where they start.
struct Lanes {
  int64_t batch, channel, count;
  vf bias, skip;
};

inline Lanes lanes_at(const ScanDirection& dir, const Item& item, int64_t channel) {
  const int64_t left = item.last - channel, count = left < kLanes ? left : kLanes;
  return {item.batch, channel, count, dir.bias ? load(dir.bias + channel, count) : vf{},
          dir.D ? load(dir.D + channel, count) : vf{}};
}

// A in units of log 2, one vector of channels per state.
inline void load_decay(const ScanCall& call, const ScanDirection& dir, const Lanes& at, vf* A) {
  for (int64_t i = 0; i < dir.state; ++i) {
    A[i] = load(dir.A + i * call.channels + at.channel, at.count) * kLog2E;
  }
}

struct Step {
  vf u, delta, slope;
};

template <class T>
inline Step load_step(const ScanDirection& dir, const Lanes& at, int64_t t) {
  Step step;
  step.u = load(row<T>(dir.u, at.batch, t) + at.channel, at.count);
  const vf raw = load(row<T>(dir.delta, at.batch, t) + at.channel, at.count) + at.bias;
  if (dir.softplus) {
    const Softplus smooth = softplus(raw);
    step.delta = smooth.value;
    step.slope = smooth.slope;
  } else {
    step.delta = raw;
    step.slope = splat(1.0f);
  }
  return step;
}

// Index of scan step s in memory.
inline int64_t time_of(const ScanCall& call, const ScanDirection& dir, int64_t s) {
  return dir.reverse ? call.length - 1 - s : s;
}

// The offset of a vector of channels in the contiguous (batch, length, channels) output arrays.
inline int64_t place_of(const ScanCall& call, const Lanes& at, int64_t t) {
  return (at.batch * call.length + t) * call.channels + at.channel;
}

inline float share(const ScanCall& call) { return call.directions == 2 ? 0.5f : 1.0f; }

// Vectors of outputs of one direction that wait for those of the next.
inline int64_t others(const ScanCall& call) { return call.directions == 2 ? kVectors * call.length : 0; }

// The buffers of forward for one direction, per vector of channels and per step of a tile; `other` is the previous
// direction's output at every step.
struct ForwardRoom {
  vf *A, *states, *delta, *drive, *y, *other;

  // Returns the number of vectors used; `from` may be null to count them only.
  int64_t lay_out(vf* from, const ScanCall& call, int64_t n) {
    int64_t used = 0;
    auto take = [&](int64_t count) {
      vf* here = from + used;
      used += count;
      return here;
    };
    other = take(others(call));
    A = take(kVectors * n);
    states = take(kVectors * n);
    delta = take(kVectors * kTile);
    drive = take(kVectors * kTile);
    y = take(kVectors * kTile);
    return used;
  }
};

// Reads a tile: the step sizes, the input of the states, and the skip connection.
template <class T>
inline void enter_tile(const ScanCall call, const ScanDirection dir, const Lanes at, int64_t start, int64_t steps,
                       const ForwardRoom room, int64_t vector) {
  vf *delta = room.delta + vector * kTile, *drive = room.drive + vector * kTile, *y = room.y + vector * kTile;
  for (int64_t k = 0; k < steps; ++k) {
    const Step step = load_step<T>(dir, at, time_of(call, dir, start + k));
    delta[k] = step.delta;
    drive[k] = step.delta * step.u;
    y[k] = at.skip * step.u;
  }
}

// Runs the recurrence of one vector of channels over a tile. kState is the number of states a channel has, or 0
// when it is only known at run time.
template <class T, int kState>
void advance_tile(const ScanCall call, const ScanDirection dir, const Lanes at, int64_t start, int64_t steps,
                  const ForwardRoom room, int64_t vector) {
  const int64_t n = kState ? kState : dir.state;
  const vf* A = room.A + vector * n;
  const vf *delta = room.delta + vector * kTile, *drive = room.drive + vector * kTile;
  vf *states = room.states + vector * n, *y = room.y + vector * kTile;
  vf fixed[kState ? kState : 1];
  vf* h = kState ? fixed : states;
  if (kState) {
    for (int64_t i = 0; i < n; ++i) h[i] = states[i];
  }
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t t = time_of(call, dir, start + k);
    const float *B = row<float>(dir.B, at.batch, t), *C = row<float>(dir.C, at.batch, t);
    if (start + k + kTile < call.length) {
      const int64_t ahead = time_of(call, dir, start + k + kTile);
      fetch<T>(dir.u, at, ahead);
      fetch<T>(dir.delta, at, ahead);
      fetch<T>(call.z, at, ahead);
      __builtin_prefetch(static_cast<T*>(call.out) + place_of(call, at, ahead), 1);
    }
    vf sum = y[k];
#pragma GCC unroll 16
    for (int64_t i = 0; i < n; ++i) {
      h[i] = exp2(delta[k] * A[i]) * h[i] + drive[k] * B[i];
      sum += h[i] * C[i];
    }
    y[k] = sum;
  }
  if (kState) {
    for (int64_t i = 0; i < n; ++i) states[i] = h[i];
  }
}

// Writes a tile: adds the previous direction, and after the last one averages and gates.
template <class T>
inline void leave_tile(const ScanCall call, int which, const Lanes at, int64_t start, int64_t steps,
                       const ForwardRoom room, int64_t vector) {
  const ScanDirection dir = call.direction[which];
  const bool add = which > 0, finish = which + 1 == call.directions;
  const vf* y = room.y + vector * kTile;
  vf* other = room.other + vector * call.length;
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t t = time_of(call, dir, start + k);
    vf result = y[k];
    if (add) result += other[t];
    if (!finish) {
      other[t] = result;
      continue;
    }
    result *= share(call);
    if (call.z.data) {
      const vf z = load(row<T>(call.z, at.batch, t) + at.channel, at.count);
      result *= z * sigmoid(z);
    }
    store(static_cast<T*>(call.out) + place_of(call, at, t), result, at.count);
  }
}

template <class T, int kState>
void forward_direction(const ScanCall& call, int which, const Item& item, vf* scratch) {
  const ScanDirection& dir = call.direction[which];
  ForwardRoom room;
  room.lay_out(scratch, call, dir.state);
  Lanes lanes[kVectors];
  int64_t vectors = 0;
  for (int64_t channel = item.first; channel < item.last; channel += kLanes, ++vectors) {
    lanes[vectors] = lanes_at(dir, item, channel);
    load_decay(call, dir, lanes[vectors], room.A + vectors * dir.state);
  }
  memset(room.states, 0, sizeof(vf) * static_cast<size_t>(vectors * dir.state));
  for (int64_t start = 0; start < call.length; start += kTile) {
    const int64_t left = call.length - start, steps = left < kTile ? left : kTile;
    for (int64_t v = 0; v < vectors; ++v) enter_tile<T>(call, dir, lanes[v], start, steps, room, v);
    for (int64_t v = 0; v < vectors; ++v) advance_tile<T, kState>(call, dir, lanes[v], start, steps, room, v);
    for (int64_t v = 0; v < vectors; ++v) leave_tile<T>(call, which, lanes[v], start, steps, room, v);
  }
}

int64_t scan_forward_scratch(const ScanCall& call) {
  int64_t most = 0;
  for (int i = 0; i < call.directions; ++i) {
    ForwardRoom room;
    const int64_t used = room.lay_out(nullptr, call, call.direction[i].state);
    if (used > most) most = used;
  }
  return most * kLanes;
}

template <class T>
void scan_forward_of(const ScanCall& call, int64_t number, float* scratch) {
  const Item item = locate(number, call.channels);
  for (int which = 0; which < call.directions; ++which) {
    vf* room = reinterpret_cast<vf*>(scratch);
    if (call.direction[which].state == 16) {
      forward_direction<T, 16>(call, which, item, room);
    } else {
      forward_direction<T, 0>(call, which, item, room);
    }
  }
}

constexpr int64_t kChunkBytes = 128 * 1024;  // of states in a chunk, which should stay in the second-level cache

// How backward cuts time: the states and decays of one chunk exist at once; the state before each chunk is stored.
struct Chunks {
  int64_t size, count;
};

inline Chunks chunks_of(const ScanCall& call, const ScanDirection& dir) {
  int64_t most = kChunkBytes / (dir.state * kLanes * 4 + 1);
  most = most < 1 ? 1 : most;
  const int64_t count = call.length > 0 ? (call.length + most - 1) / most : 1;
  return {call.length > 0 ? (call.length + count - 1) / count : 1, count};
}

// Vectors that hold one value per state.
inline int64_t state_vectors(int64_t n) { return (n + kLanes - 1) / kLanes; }

struct BackwardRoom {
  vf *A, *grad_A, *carry, *grad_D, *grad_bias, *before;       // per vector of channels
  vf *states, *decays;                                        // per step of a chunk and state
  vf *sum_B, *sum_C;                                          // per step of a chunk; a lane holds one state
  vf *u, *delta, *slope, *y, *grad_y;                         // per step of a chunk
  vf* other;                                                  // the previous direction's output at every step

  // Returns the number of vectors used; `from` may be null to count them only.
  int64_t lay_out(vf* from, const ScanCall& call, int64_t n, const Chunks& chunks) {
    int64_t used = 0;
    auto take = [&](int64_t count) {
      vf* here = from + used;
      used += count;
      return here;
    };
    other = take(call.z.data ? others(call) : 0);
    A = take(kVectors * n);
    grad_A = take(kVectors * n);
    carry = take(kVectors * n);
    grad_D = take(kVectors);
    grad_bias = take(kVectors);
    before = take(chunks.count * kVectors * n);
    states = take((chunks.size + 1) * n);
    decays = take(chunks.size * n);
    sum_B = take(chunks.size * state_vectors(n));
    sum_C = take(chunks.size * state_vectors(n));
    u = take(chunks.size);
    delta = take(chunks.size);
    slope = take(chunks.size);
    y = take(chunks.size);
    grad_y = take(chunks.size);
    return used;
  }
};

// Reads a chunk: inputs, step sizes, and the skip connection.
template <class T>
inline void enter_chunk(const ScanCall call, const ScanDirection dir, const Lanes at, int64_t start, int64_t steps,
                        const BackwardRoom room) {
  for (int64_t k = 0; k < steps; ++k) {
    if (start + k + kAhead < call.length) {
      const int64_t ahead = time_of(call, dir, start + k + kAhead);
      fetch<T>(dir.u, at, ahead);
      fetch<T>(dir.delta, at, ahead);
    }
    const Step step = load_step<T>(dir, at, time_of(call, dir, start + k));
    room.u[k] = step.u;
    room.delta[k] = step.delta;
    room.slope[k] = step.slope;
    room.y[k] = at.skip * step.u;
  }
}

// Stores the state before every chunk of one vector of channels.
template <class T, int kState>
void keep_states(const ScanCall call, const ScanDirection dir, const Lanes at, const Chunks chunks,
                 const BackwardRoom room, int64_t vector) {
  const int64_t n = kState ? kState : dir.state;
  const vf* A = room.A + vector * n;
  vf* before = room.before + vector * n;
  for (int64_t i = 0; i < n; ++i) before[i] = vf{};
  for (int64_t chunk = 0; chunk + 1 < chunks.count; ++chunk) {
    const int64_t start = chunk * chunks.size;
    enter_chunk<T>(call, dir, at, start, chunks.size, room);
    vf fixed[kState ? kState : 1];
    vf* next = before + kVectors * n;
    vf* h = kState ? fixed : next;
    for (int64_t i = 0; i < n; ++i) h[i] = before[i];
    for (int64_t k = 0; k < chunks.size; ++k) {
      const float* B = row<float>(dir.B, at.batch, time_of(call, dir, start + k));
      const vf delta = room.delta[k], drive = delta * room.u[k];
#pragma GCC unroll 16
      for (int64_t i = 0; i < n; ++i) h[i] = exp2(delta * A[i]) * h[i] + drive * B[i];
    }
    for (int64_t i = 0; i < n; ++i) next[i] = h[i];
    before = next;
  }
}

// Rebuilds the states and outputs of a chunk.
template <class T, int kState>
void rebuild_chunk(const ScanCall call, const ScanDirection dir, const Lanes at, int64_t start, int64_t steps,
                   const BackwardRoom room, int64_t vector, int64_t chunk) {
  const int64_t n = kState ? kState : dir.state;
  const vf* A = room.A + vector * n;
  const vf* before = room.before + (chunk * kVectors + vector) * n;
  for (int64_t i = 0; i < n; ++i) room.states[i] = before[i];
  vf fixed[kState ? kState : 1];
  vf* kept = kState ? fixed : nullptr;
  if (kState) {
    for (int64_t i = 0; i < n; ++i) kept[i] = before[i];
  }
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t t = time_of(call, dir, start + k);
    const float *B = row<float>(dir.B, at.batch, t), *C = row<float>(dir.C, at.batch, t);
    if (start + k + kAhead < call.length) {
      const int64_t ahead = time_of(call, dir, start + k + kAhead);
      fetch<T>(call.grad_out, at, ahead);
      if (call.z.data) {
        fetch<T>(call.z, at, ahead);
        __builtin_prefetch(static_cast<T*>(call.grad_z) + place_of(call, at, ahead), 1);
      }
    }
    const vf delta = room.delta[k], drive = delta * room.u[k];
    const vf* h = kState ? kept : room.states + k * n;
    vf* next = room.states + (k + 1) * n;
    vf* decay = room.decays + k * n;
    vf y = room.y[k];
#pragma GCC unroll 16
    for (int64_t i = 0; i < n; ++i) {
      const vf a = exp2(delta * A[i]);
      const vf value = a * h[i] + drive * B[i];
      decay[i] = a;
      next[i] = value;
      if (kState) kept[i] = value;
      y += value * C[i];
    }
    room.y[k] = y;
  }
}

// Propagates the gradient of the output through the gate, and computes that of the gate.
template <class T>
inline void gate_chunk(const ScanCall call, int which, const Lanes at, int64_t start, int64_t steps,
                       const BackwardRoom room, int64_t vector) {
  const ScanDirection dir = call.direction[which];
  const bool add = which > 0, finish = which + 1 == call.directions;
  vf* other = room.other + vector * call.length;
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t t = time_of(call, dir, start + k);
    vf grad = load(row<T>(call.grad_out, at.batch, t) + at.channel, at.count) * share(call);
    if (call.z.data) {
      vf y = room.y[k];
      if (add) y += other[t];
      const vf z = load(row<T>(call.z, at.batch, t) + at.channel, at.count);
      const vf gate = sigmoid(z);
      if (finish) {
        store(static_cast<T*>(call.grad_z) + place_of(call, at, t), grad * y * (gate * (1.0f + z * (1.0f - gate))), at.count);
      } else {
        other[t] = y;
      }
      grad *= z * gate;
    }
    room.grad_y[k] = grad;
  }
}

// Walks one chunk from its last step to its first with the gradient of the state in registers.
template <class T, int kState>
void backward_chunk(const ScanCall call, const ScanDirection dir, const Lanes at, int64_t start, int64_t steps,
                    const BackwardRoom room, int64_t vector) {
  const int64_t n = kState ? kState : dir.state;
  const vf* A = room.A + vector * n;
  vf* grad_A = room.grad_A + vector * n;
  vf fixed[kState ? kState : 1];
  vf* carry = kState ? fixed : room.carry + vector * n;
  if (kState) {
    for (int64_t i = 0; i < n; ++i) carry[i] = room.carry[vector * n + i];
  }
  vf grad_D = room.grad_D[vector], grad_bias = room.grad_bias[vector];
  for (int64_t k = steps - 1; k >= 0; --k) {
    const int64_t t = time_of(call, dir, start + k);
    const float *B = row<float>(dir.B, at.batch, t), *C = row<float>(dir.C, at.batch, t);
    if (k >= kAhead) {
      const int64_t ahead = place_of(call, at, time_of(call, dir, start + k - kAhead));
      __builtin_prefetch(static_cast<T*>(dir.grad_u) + ahead, 1);
      __builtin_prefetch(static_cast<T*>(dir.grad_delta) + ahead, 1);
    }
    const vf u = room.u[k], delta = room.delta[k], grad_y = room.grad_y[k], drive = delta * u;
    const vf *h = room.states + k * n, *next = h + n, *decay = room.decays + k * n;
    vf *sum_B = room.sum_B + k * state_vectors(n), *sum_C = room.sum_C + k * state_vectors(n);
    vf grad_drive = {}, grad_rate = {};
    vf quad_B[kLanes / 4], quad_C[kLanes / 4];
#pragma GCC unroll 4
    for (int64_t first = 0; first < n; first += 4) {
      vf share_B[4], share_C[4];
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t i = first + j;
        if (!kState && i >= n) {
          share_B[j] = share_C[j] = vf{};
          continue;
        }
        const vf grad_h = carry[i] + grad_y * C[i];
        share_C[j] = grad_y * next[i];
        share_B[j] = drive * grad_h;
        grad_drive += grad_h * B[i];
        const vf before = decay[i] * grad_h;
        const vf exponent = before * h[i];
        grad_rate += exponent * A[i];
        grad_A[i] += exponent * delta;
        carry[i] = before;
      }
      const int64_t quad = first / 4 % (kLanes / 4);
      quad_B[quad] = quad_sum(share_B[0], share_B[1], share_B[2], share_B[3]);
      quad_C[quad] = quad_sum(share_C[0], share_C[1], share_C[2], share_C[3]);
      if (quad + 1 == kLanes / 4 || first + 4 >= n) {
        for (int64_t rest = quad + 1; rest < kLanes / 4; ++rest) quad_B[rest] = quad_C[rest] = vf{};
        sum_B[first / kLanes] += join_quads(quad_B);
        sum_C[first / kLanes] += join_quads(quad_C);
      }
    }
    const vf grad_delta = (grad_rate * kLn2 + grad_drive * u) * room.slope[k];
    const int64_t place = place_of(call, at, t);
    store(static_cast<T*>(dir.grad_u) + place, grad_drive * delta + at.skip * grad_y, at.count);
    store(static_cast<T*>(dir.grad_delta) + place, grad_delta, at.count);
    grad_D += grad_y * u;
    grad_bias += grad_delta;
  }
  if (kState) {
    for (int64_t i = 0; i < n; ++i) room.carry[vector * n + i] = carry[i];
  }
  room.grad_D[vector] = grad_D;
  room.grad_bias[vector] = grad_bias;
}

template <class T, int kState>
void backward_direction(const ScanCall& call, int which, const Item& item, vf* scratch) {
  const ScanDirection& dir = call.direction[which];
  const int64_t n = dir.state;
  const Chunks chunks = chunks_of(call, dir);
  BackwardRoom room;
  room.lay_out(scratch, call, n, chunks);
  Lanes lanes[kVectors];
  int64_t vectors = 0;
  for (int64_t channel = item.first; channel < item.last; channel += kLanes, ++vectors) {
    lanes[vectors] = lanes_at(dir, item, channel);
    load_decay(call, dir, lanes[vectors], room.A + vectors * n);
    keep_states<T, kState>(call, dir, lanes[vectors], chunks, room, vectors);
  }
  memset(room.grad_A, 0, sizeof(vf) * kVectors * static_cast<size_t>(n));
  memset(room.carry, 0, sizeof(vf) * kVectors * static_cast<size_t>(n));
  memset(room.grad_D, 0, sizeof(vf) * kVectors);
  memset(room.grad_bias, 0, sizeof(vf) * kVectors);
  const int64_t part = (item.batch * groups(call.channels) + item.group) * call.length;
  for (int64_t chunk = chunks.count - 1; chunk >= 0; --chunk) {
    const int64_t start = chunk * chunks.size, left = call.length - start;
    const int64_t steps = left < chunks.size ? left : chunks.size;
    if (steps <= 0) continue;
    memset(room.sum_B, 0, sizeof(vf) * static_cast<size_t>(steps * state_vectors(n)));
    memset(room.sum_C, 0, sizeof(vf) * static_cast<size_t>(steps * state_vectors(n)));
    for (int64_t v = 0; v < vectors; ++v) {
      enter_chunk<T>(call, dir, lanes[v], start, steps, room);
      rebuild_chunk<T, kState>(call, dir, lanes[v], start, steps, room, v, chunk);
      gate_chunk<T>(call, which, lanes[v], start, steps, room, v);
      backward_chunk<T, kState>(call, dir, lanes[v], start, steps, room, v);
    }
    for (int64_t k = 0; k < steps; ++k) {
      const int64_t t = time_of(call, dir, start + k);
      float *part_B = dir.part_B + (part + t) * n, *part_C = dir.part_C + (part + t) * n;
      memcpy(part_B, room.sum_B + k * state_vectors(n), static_cast<size_t>(n) * 4);
      memcpy(part_C, room.sum_C + k * state_vectors(n), static_cast<size_t>(n) * 4);
    }
  }
  for (int64_t v = 0; v < vectors; ++v) {
    const Lanes& at = lanes[v];
    const int64_t place = item.batch * call.channels + at.channel;
    for (int64_t i = 0; i < n; ++i) {
      store(dir.part_A + (item.batch * n + i) * call.channels + at.channel, room.grad_A[v * n + i], at.count);
    }
    store(dir.part_D + place, room.grad_D[v], at.count);
    store(dir.part_bias + place, room.grad_bias[v], at.count);
  }
}

int64_t scan_backward_scratch(const ScanCall& call) {
  int64_t most = 0;
  for (int i = 0; i < call.directions; ++i) {
    BackwardRoom room;
    const ScanDirection& dir = call.direction[i];
    const int64_t used = room.lay_out(nullptr, call, dir.state, chunks_of(call, dir));
    if (used > most) most = used;
  }
  return most * kLanes;
}

template <class T>
void scan_backward_of(const ScanCall& call, int64_t number, float* scratch) {
  const Item item = locate(number, call.channels);
  for (int which = 0; which < call.directions; ++which) {
    vf* room = reinterpret_cast<vf*>(scratch);
    if (call.direction[which].state == 16) {
      backward_direction<T, 16>(call, which, item, room);
    } else {
      backward_direction<T, 0>(call, which, item, room);
    }
  }
}

void scan_forward(const ScanCall& call, int64_t item, float* scratch) {
  (call.half ? scan_forward_of<uint16_t> : scan_forward_of<float>)(call, item, scratch);
}

void scan_backward(const ScanCall& call, int64_t item, float* scratch) {
  (call.half ? scan_backward_of<uint16_t> : scan_backward_of<float>)(call, item, scratch);
}

}  // namespace
