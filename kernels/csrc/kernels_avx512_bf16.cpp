// Kernels for AVX-512 with bfloat16 products. They do what the tiles of AMX do, more slowly than
// float32 does it; they are never chosen unless asked for, and run the AMX path where AMX is missing.
#include "avx512_impl.h"

namespace vqcodec {
namespace {

struct TileState {};

// products[i][j] = codeword tile i times lane tile j, over all steps: high x low, high x high,
// low x high. Tiles of codewords are [16][32], of lanes [16 pairs][16 lanes][2].
void multiply_tiles(const uint16_t* codewords0, const uint16_t* codewords1, const uint16_t* lanes,
                    int64_t steps, float* products) {
  constexpr int kValues = 512;
  constexpr int kParts[3][2] = {{0, 1}, {0, 0}, {1, 0}};
  std::memset(products, 0, 4 * 256 * sizeof(float));
  for (int64_t s = 0; s < steps; ++s) {
    for (const auto& parts : kParts) {
      for (int tile = 0; tile < 4; ++tile) {
        const uint16_t* a = (tile < 2 ? codewords0 : codewords1) + (s * 2 + parts[0]) * kValues;
        const uint16_t* b = lanes + (s * 4 + parts[1] * 2 + tile % 2) * kValues;
        for (int k = 0; k < 16; ++k) {
          __m512 sum = _mm512_setzero_ps();
          for (int pair = 0; pair < 16; ++pair) {
            int32_t both;
            std::memcpy(&both, a + k * 32 + pair * 2, 4);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(both),
                                   (__m512bh)_mm512_loadu_si512(b + pair * 32));
          }
          float* out = products + tile * 256 + k * 16;
          _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
        }
      }
    }
  }
}

}  // namespace
}  // namespace vqcodec

#define VQCODEC_TILES 1
#include "gaussian_sample_impl.h"
#include "integer_layers_impl.h"
#include "nearest_codeword_impl.h"

namespace vqcodec {
const KernelTable* avx512_bf16_kernels() {
  static const KernelTable table = {kLayerKernels, kSearchKernels, kGaussianKernels};
  return &table;
}
}  // namespace vqcodec
