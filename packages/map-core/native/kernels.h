// All kernels of one instruction set: each file that includes this is compiled for its own.
#pragma once
#include "attention_kernel.h"
#include "conv_kernel.h"
#include "scan_kernel.h"
#include "transpose_kernel.h"

namespace {

// A constant, so that no code for a newer processor runs when the library is loaded.
constexpr Kernels kernels_called(const char* name) {
  return {name,
          scan_forward_scratch,
          scan_backward_scratch,
          conv_forward_scratch,
          conv_backward_scratch,
          scan_forward,
          scan_backward,
          conv_forward,
          conv_backward,
          transpose,
          attention_forward_scratch,
          attention_backward_scratch,
          attention_mask,
          attention_forward,
          attention_backward};
}

}  // namespace
