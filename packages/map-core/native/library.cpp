// Entry points: choice of the instruction set, threads, and the sums over work items in a fixed order.
// What a thread computes never depends on how many there are, so results are the same for any number of threads.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "ops.h"

#if defined(_WIN32)
#define MAP_EXPORT extern "C" __declspec(dllexport)
#else
#define MAP_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace map_ops {
namespace {

// GOMP_parallel of the OpenMP runtime that PyTorch uses: then its waiting threads work for us instead of competing.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel openmp = nullptr;

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  if (&kernels == &kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
  if (&kernels == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &kernels == &kPortable;
}

const Kernels* const kAll[] = {
#if defined(__x86_64__)
    &kAvx512, &kAvx2,
#endif
    &kPortable};

const Kernels* best() {
  for (const Kernels* kernels : kAll) {
    if (runs_here(*kernels)) return kernels;
  }
  return &kPortable;
}

const Kernels* chosen = nullptr;

const Kernels& kernels() {
  if (!chosen) chosen = best();
  return *chosen;
}

template <class Call>
struct Job {
  void (*run)(const Call&, int64_t item, float* scratch);
  const Call* call;
  int64_t items, scratch_floats;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  static void work(void* self) {
    Job& job = *static_cast<Job*>(self);
    constexpr std::size_t kAlign = 64;
    const std::size_t bytes = static_cast<std::size_t>(job.scratch_floats) * 4 + kAlign;
    void* memory = std::malloc(bytes);
    if (!memory) {
      job.failed = true;
      return;
    }
    const auto address = (reinterpret_cast<std::uintptr_t>(memory) + kAlign - 1) / kAlign * kAlign;
    for (int64_t item = job.next++; item < job.items; item = job.next++) {
      job.run(*job.call, item, reinterpret_cast<float*>(address));
    }
    std::free(memory);
  }
};

// Returns 0, or 1 when memory ran out.
template <class Call>
int run_items(const Call& call, int64_t items, int64_t scratch_floats,
              void (*run)(const Call&, int64_t, float*)) {
  Job<Call> job{run, &call, items, scratch_floats};
  const int64_t threads = call.threads < items ? call.threads : items;
  if (threads <= 1) {
    Job<Call>::work(&job);
  } else if (openmp) {
    openmp(&Job<Call>::work, &job, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> helpers;
    try {
      for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(&Job<Call>::work, &job);
    } catch (...) {
      // Fewer threads do the same work.
    }
    Job<Call>::work(&job);
    for (std::thread& helper : helpers) helper.join();
  }
  return job.failed ? 1 : 0;
}

// into[j] = sum over i of parts[i * size + j], i ascending.
void sum_parts(float* into, const float* parts, int64_t count, int64_t size, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; ++j) into[j] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float* part = parts + i * size;
    for (int64_t j = from; j < to; ++j) into[j] += part[j];
  }
}

void sum_groups(const ScanCall& call, int64_t batch, float*) {
  const int64_t count = groups(call.channels);
  for (int i = 0; i < call.directions; ++i) {
    const ScanDirection& dir = call.direction[i];
    const int64_t size = call.length * dir.state;
    sum_parts(dir.grad_B + batch * size, dir.part_B + batch * count * size, count, size, 0, size);
    sum_parts(dir.grad_C + batch * size, dir.part_C + batch * count * size, count, size, 0, size);
  }
}

void sum_batch(const ScanCall& call, int64_t group, float*) {
  const int64_t first = group * kGroup, end = first + kGroup;
  const int64_t last = end < call.channels ? end : call.channels;
  for (int i = 0; i < call.directions; ++i) {
    const ScanDirection& dir = call.direction[i];
    const int64_t n = dir.state, d = call.channels;
    for (int64_t row = 0; row < n; ++row) {
      sum_parts(dir.grad_A, dir.part_A, call.batch, d * n, row * d + first, row * d + last);
    }
    if (dir.D) sum_parts(dir.grad_D, dir.part_D, call.batch, d, first, last);
    if (dir.bias) sum_parts(dir.grad_bias, dir.part_bias, call.batch, d, first, last);
  }
}

// One block of uninitialised floats, cut into pieces.
class Pieces {
 public:
  int64_t add(int64_t size) {
    const int64_t here = total_;
    total_ += size;
    return here;
  }
  bool allocate() {
    memory_.reset(new (std::nothrow) float[static_cast<std::size_t>(total_ > 0 ? total_ : 1)]);
    return memory_ != nullptr;
  }
  float* at(int64_t place) { return memory_.get() + place; }

 private:
  int64_t total_ = 0;
  std::unique_ptr<float[]> memory_;
};

// Prepares the mask once for all heads; the memory must live as long as the call.
bool read_mask(AttentionCall& call, Pieces& memory) {
  if (!call.mask) call.mask_batch = call.mask_rows = 1;
  const int64_t words = memory.add(call.mask_batch * mask_padded_rows(call) * mask_words(call));
  const int64_t kinds = memory.add(parts(call.mask_batch * mask_row_blocks(call) * mask_blocks(call), 4));
  if (!memory.allocate()) return false;
  call.mask_words = reinterpret_cast<uint32_t*>(memory.at(words));
  call.mask_kinds = reinterpret_cast<uint8_t*>(memory.at(kinds));
  return run_items(call, call.mask_batch * mask_row_blocks(call), 0, kernels().attention_mask) == 0;
}

}  // namespace
}  // namespace map_ops

using namespace map_ops;

MAP_EXPORT int64_t map_ops_abi() { return kAbi; }

MAP_EXPORT void map_ops_use_openmp(void* gomp_parallel) { openmp = reinterpret_cast<Parallel>(gomp_parallel); }

MAP_EXPORT const char* map_ops_instruction_set() { return kernels().name; }

// Uses the instruction set at that index of the list, best first; returns its name, or null if it cannot run here.
MAP_EXPORT const char* map_ops_use_instruction_set(int64_t place) {
  if (place < 0 || place >= static_cast<int64_t>(sizeof kAll / sizeof *kAll)) return nullptr;
  if (!runs_here(*kAll[place])) return nullptr;
  chosen = kAll[place];
  return chosen->name;
}

MAP_EXPORT int map_ops_scan_forward(const ScanCall* call) {
  const int64_t items = call->batch * groups(call->channels);
  return run_items(*call, items, kernels().scan_forward_scratch(*call), kernels().scan_forward);
}

MAP_EXPORT int map_ops_scan_backward(ScanCall* call) {
  const int64_t batch = call->batch, channels = call->channels, items = batch * groups(channels);
  Pieces pieces;
  int64_t place[2][5];
  for (int i = 0; i < call->directions; ++i) {
    const int64_t n = call->direction[i].state;
    place[i][0] = pieces.add(items * call->length * n);
    place[i][1] = pieces.add(items * call->length * n);
    place[i][2] = pieces.add(batch * channels * n);
    place[i][3] = pieces.add(batch * channels);
    place[i][4] = pieces.add(batch * channels);
  }
  if (!pieces.allocate()) return 1;
  for (int i = 0; i < call->directions; ++i) {
    ScanDirection& dir = call->direction[i];
    dir.part_B = pieces.at(place[i][0]);
    dir.part_C = pieces.at(place[i][1]);
    dir.part_A = pieces.at(place[i][2]);
    dir.part_D = pieces.at(place[i][3]);
    dir.part_bias = pieces.at(place[i][4]);
  }
  if (run_items(*call, items, kernels().scan_backward_scratch(*call), kernels().scan_backward)) return 1;
  run_items(*call, batch, 0, &sum_groups);
  run_items(*call, groups(channels), 0, &sum_batch);
  return 0;
}

MAP_EXPORT int map_ops_conv_forward(const ConvCall* call) {
  const int64_t items = call->batch * groups(call->channels);
  return run_items(*call, items, kernels().conv_forward_scratch(*call), kernels().conv_forward);
}

MAP_EXPORT int map_ops_conv_backward(ConvCall* call) {
  const int64_t batch = call->batch, channels = call->channels, taps = call->taps;
  Pieces pieces;
  const int64_t weight = pieces.add(batch * taps * channels), bias = pieces.add(batch * channels);
  if (!pieces.allocate()) return 1;
  call->part_weight = pieces.at(weight);
  call->part_bias = pieces.at(bias);
  const int64_t items = batch * groups(channels);
  if (run_items(*call, items, kernels().conv_backward_scratch(*call), kernels().conv_backward)) return 1;
  sum_parts(call->grad_weight, call->part_weight, batch, taps * channels, 0, taps * channels);
  if (call->bias) sum_parts(call->grad_bias, call->part_bias, batch, channels, 0, channels);
  return 0;
}

MAP_EXPORT int map_ops_transpose(const TransposeCall* call) {
  return run_items(*call, groups(call->columns), 0, kernels().transpose);
}

MAP_EXPORT int map_ops_attention_forward(AttentionCall* call) {
  Pieces memory;
  if (!read_mask(*call, memory)) return 1;
  const int64_t scratch = kernels().attention_forward_scratch(*call);
  return run_items(*call, call->batch * call->heads, scratch, kernels().attention_forward);
}

MAP_EXPORT int map_ops_attention_backward(AttentionCall* call) {
  Pieces memory;
  if (!read_mask(*call, memory)) return 1;
  const int64_t scratch = kernels().attention_backward_scratch(*call);
  return run_items(*call, call->batch * call->heads, scratch, kernels().attention_backward);
}
