// Kernels for any CPU: four-lane vectors, which every compiler target can lower.
#define VQCODEC_LANES 4
#include "lanes_impl.h"

namespace vqcodec {
namespace {

constexpr int kRows = 3, kCodes = 2;
constexpr int kRoundings = 2;  // of a product and of a sum

inline VecF subtract_product(VecF sum, VecF a, VecF b) { return sum - a * b; }
inline Vec8 subtract_product(Vec8 sum, Vec8 a, Vec8 b) { return sum - a * b; }
inline VecF minimum(VecF a, VecF b) { return a < b ? a : b; }
inline VecF maximum(VecF a, VecF b) { return a > b ? a : b; }

inline unsigned lanes_at_most(Vec8 values, float limit) {
  unsigned mask = 0;
  for (int lane = 0; lane < 8; ++lane) mask |= static_cast<unsigned>(values[lane] <= limit) << lane;
  return mask;
}

}  // namespace
}  // namespace vqcodec

#include "integer_layers_impl.h"
#include "nearest_codeword_impl.h"

namespace vqcodec {
const KernelTable* portable_kernels() {
  static const KernelTable table = {kLayerKernels, kSearchKernels};
  return &table;
}
}  // namespace vqcodec
