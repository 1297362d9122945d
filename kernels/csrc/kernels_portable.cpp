// Kernels for any CPU: four-lane vectors, which every compiler target can lower.
#define VQCODEC_LANES 4
#include <cmath>

#include "lanes_impl.h"

namespace vqcodec {
namespace {

constexpr int kRows = 3, kCodes = 2;
constexpr int kRoundings = 2;  // of a product and of a sum

inline VecF subtract_product(VecF sum, VecF a, VecF b) { return sum - a * b; }
inline Vec8 subtract_product(Vec8 sum, Vec8 a, Vec8 b) { return sum - a * b; }
inline VecF minimum(VecF a, VecF b) { return a < b ? a : b; }
inline VecF maximum(VecF a, VecF b) { return a > b ? a : b; }

// Products of lanes 0 and 2, 64 bits each.
inline VecI multiply_even(VecI a, VecI b) {
  typedef uint64_t Products __attribute__((vector_size(16)));
  constexpr uint64_t kLow = 0xffffffff;
  return (VecI)(((Products)a & kLow) * ((Products)b & kLow));
}
inline VecI reverse_fours(VecI a) { return VecI{a[3], a[2], a[1], a[0]}; }
inline VecF square_root(VecF a) {
  for (int lane = 0; lane < kLanes; ++lane) a[lane] = std::sqrt(a[lane]);
  return a;
}

inline unsigned lanes_at_most(Vec8 values, float limit) {
  unsigned mask = 0;
  for (int lane = 0; lane < 8; ++lane) mask |= static_cast<unsigned>(values[lane] <= limit) << lane;
  return mask;
}

}  // namespace
}  // namespace vqcodec

#include "gaussian_sample_impl.h"
#include "integer_layers_impl.h"
#include "nearest_codeword_impl.h"

namespace vqcodec {
const KernelTable* portable_kernels() {
  static const KernelTable table = {kLayerKernels, kSearchKernels, kGaussianKernels};
  return &table;
}
}  // namespace vqcodec
