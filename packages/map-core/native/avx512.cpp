#if defined(__x86_64__)
#include "conv_kernel.h"
#include "scan_kernel.h"
#include "transpose_kernel.h"

namespace map_ops {
extern const Kernels kAvx512;
const Kernels kAvx512 = {
    "avx512",
    scan_forward_scratch,
    scan_backward_scratch,
    conv_forward_scratch,
    conv_backward_scratch,
    scan_forward,
    scan_backward,
    conv_forward,
    conv_backward,
    transpose,
};
}  // namespace map_ops
#endif
