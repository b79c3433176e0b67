// Plain C interface between map_core.ops.native and the kernels; the Python side mirrors these structures.
// Every field is eight bytes wide so that both sides agree on the layout without padding rules.
// Sizes are (batch, length, channels, state); the last axis of every array is contiguous.
#pragma once
#include <cstdint>

namespace map_ops {

constexpr int64_t kAbi = 5;          // raise when a structure or the meaning of a field changes
constexpr int64_t kGroup = 64;       // channels that one work item covers; fixes the order of all sums
constexpr int64_t kQueryBlock = 6;   // queries of attention that are processed at once

// Void data are float32, or bfloat16 in a call whose `half` is 1.
struct Rows {  // (batch, length, x) with any stride between rows
  const void* data;
  int64_t batch_stride, step_stride;
};

struct ScanDirection {
  Rows u, delta, B, C;        // B and C are always float32
  const float *A, *D, *bias;  // (state, channels), (channels), (channels); D and bias may be null
  int64_t state, softplus, reverse;
  void *grad_u, *grad_delta;                             // contiguous, backward only
  float *grad_B, *grad_C, *grad_A, *grad_D, *grad_bias;  // the same
  float *part_B, *part_C, *part_A, *part_D, *part_bias;  // per work item, set by the library
};

struct ScanCall {
  int64_t batch, length, channels, directions, half, threads;
  Rows z, grad_out;  // z.data may be null
  void *out, *grad_z;
  ScanDirection direction[2];
};

struct ConvCall {
  int64_t batch, length, channels, taps, silu, reverse, half, threads;
  Rows x, grad_out;
  const float *weight, *bias;  // (taps, channels), (channels) or null
  void *out, *grad_x;
  float *grad_weight, *grad_bias;
  float *part_weight, *part_bias;  // per work item, set by the library
};

struct TransposeCall {  // from (rows, columns) with any stride between rows, into (columns, rows)
  int64_t rows, columns, stride, threads;
  const float* from;
  float* into;
};

struct Heads {  // (batch, length, heads, width) with any strides but the last, which is 1
  const void* data;
  int64_t batch_stride, step_stride, head_stride;
};

struct AttentionCall {
  int64_t batch, heads, queries, keys, width, half, threads;
  Heads q, k, v, grad_out;
  int64_t mask_batch, mask_rows;  // sizes of the mask: 1 or batch, 1 or queries; both 1 without one
  const uint8_t* mask;            // (mask_batch, mask_rows, keys), 1 where a query sees a key; may be null
  void* out;                      // (batch, queries, heads, width); forward writes it
  float* log_sum;                 // (batch, heads, queries); forward writes it
  void *grad_q, *grad_k, *grad_v;  // as out, of queries or keys
  uint32_t* mask_words;           // a bit for every key: (mask_batch, padded rows, words), set by the library
  uint8_t* mask_kinds;            // (mask_batch, row blocks, blocks of keys), set by the library
};

inline int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t mask_row_blocks(const AttentionCall& call) { return parts(call.mask_rows, kQueryBlock); }
inline int64_t mask_padded_rows(const AttentionCall& call) {
  return call.mask_rows == 1 ? 1 : mask_row_blocks(call) * kQueryBlock;
}
inline int64_t mask_words(const AttentionCall& call) { return parts(call.keys, 32); }
inline int64_t mask_blocks(const AttentionCall& call) { return parts(call.keys, 8); }  // of the shortest vectors

// What one instruction set offers. An item is one (batch, group of channels), a group of a matrix's columns, one
// (batch, head), or a block of a mask's rows.
struct Kernels {
  const char* name;
  int64_t (*scan_forward_scratch)(const ScanCall&);
  int64_t (*scan_backward_scratch)(const ScanCall&);
  int64_t (*conv_forward_scratch)(const ConvCall&);
  int64_t (*conv_backward_scratch)(const ConvCall&);
  void (*scan_forward)(const ScanCall&, int64_t item, float* scratch);
  void (*scan_backward)(const ScanCall&, int64_t item, float* scratch);
  void (*conv_forward)(const ConvCall&, int64_t item, float* scratch);
  void (*conv_backward)(const ConvCall&, int64_t item, float* scratch);
  void (*transpose)(const TransposeCall&, int64_t item, float* scratch);
  int64_t (*attention_forward_scratch)(const AttentionCall&);
  int64_t (*attention_backward_scratch)(const AttentionCall&);
  void (*attention_mask)(const AttentionCall&, int64_t item, float* scratch);
  void (*attention_forward)(const AttentionCall&, int64_t item, float* scratch);
  void (*attention_backward)(const AttentionCall&, int64_t item, float* scratch);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

inline int64_t groups(int64_t channels) { return parts(channels, kGroup); }

}  // namespace map_ops
