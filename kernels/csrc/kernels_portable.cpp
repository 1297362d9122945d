// Kernels for any CPU: four-lane vectors, which every compiler target can lower.
#define VQCODEC_LANES 4
#include "kernels_impl.h"

namespace vqcodec {
const KernelTable* portable_kernels() { return &kTable; }
}  // namespace vqcodec
