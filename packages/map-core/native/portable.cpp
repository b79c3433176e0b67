#include "kernels.h"

namespace map_ops {
extern const Kernels kPortable;
constexpr Kernels kPortable = kernels_called("portable");
}  // namespace map_ops
