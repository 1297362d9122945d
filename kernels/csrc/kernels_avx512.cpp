// Kernels for AVX-512 with VNNI.
#include "avx512_impl.h"

#include "gaussian_sample_impl.h"
#include "integer_layers_impl.h"
#include "nearest_codeword_impl.h"

namespace vqcodec {
const KernelTable* avx512_kernels() {
  static const KernelTable table = {kLayerKernels, kSearchKernels, kGaussianKernels};
  return &table;
}
}  // namespace vqcodec
