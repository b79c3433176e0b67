#if defined(__x86_64__)
#include "kernels.h"

namespace map_ops {
extern const Kernels kAvx512;
constexpr Kernels kAvx512 = kernels_called("avx512");
}  // namespace map_ops
#endif
