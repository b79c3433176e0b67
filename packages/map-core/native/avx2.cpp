#if defined(__x86_64__)
#include "kernels.h"

namespace map_ops {
extern const Kernels kAvx2;
constexpr Kernels kAvx2 = kernels_called("avx2");
}  // namespace map_ops
#endif
