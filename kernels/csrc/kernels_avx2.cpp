// Kernels for AVX2. The byte product goes through 16-bit madd: maddubs would saturate.
#define VQCODEC_LANES 8
#define VQCODEC_DOT_U8S8 1
#include <immintrin.h>

#include "kernels.h"
#include "lanes_impl.h"

namespace vqcodec {
namespace {

constexpr int kRows = 3, kCodes = 4;
constexpr int kRoundings = 1;

inline VecF subtract_product(VecF sum, VecF a, VecF b) { return _mm256_fnmadd_ps(a, b, sum); }
inline VecF minimum(VecF a, VecF b) { return _mm256_min_ps(a, b); }
inline VecF maximum(VecF a, VecF b) { return _mm256_max_ps(a, b); }

inline VecI multiply_even(VecI a, VecI b) { return (VecI)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
inline VecI reverse_fours(VecI a) { return (VecI)_mm256_shuffle_epi32((__m256i)a, 0x1b); }
inline VecF square_root(VecF a) { return _mm256_sqrt_ps(a); }

inline unsigned lanes_at_most(Vec8 values, float limit) {
  return _mm256_movemask_ps(_mm256_cmp_ps(values, _mm256_set1_ps(limit), _CMP_LE_OQ));
}

inline void dot_rows(const uint8_t* const* x, int quads, const int8_t* packed, int32_t (*acc)[16]) {
  // Each 64-byte quad holds 16 outputs x 4 inputs; 16 bytes of it are 4 outputs. Two rows share what
  // becomes of the weights.
  static_assert(kLayerRows % 2 == 0);
  for (int r = 0; r < kLayerRows; r += 2) {
    __m256i sums[2][4];
    for (int row = 0; row < 2; ++row)
      for (int part = 0; part < 4; ++part) sums[row][part] = _mm256_setzero_si256();
    for (int q = 0; q < quads; ++q) {
      __m256i xs[2];
      for (int row = 0; row < 2; ++row) {
        int32_t bytes;
        std::memcpy(&bytes, x[r + row] + 4 * q, 4);
        xs[row] = _mm256_cvtepu8_epi16(_mm_set1_epi32(bytes));
      }
      for (int part = 0; part < 4; ++part) {
        const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(
            reinterpret_cast<const __m128i*>(packed + q * 64 + part * 16)));
        for (int row = 0; row < 2; ++row)
          sums[row][part] = _mm256_add_epi32(sums[row][part], _mm256_madd_epi16(xs[row], w));
      }
    }
    for (int row = 0; row < 2; ++row) {
      for (int part = 0; part < 4; ++part) {
        alignas(32) int32_t pairs[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), sums[row][part]);
        for (int o = 0; o < 4; ++o) acc[r + row][part * 4 + o] += pairs[2 * o] + pairs[2 * o + 1];
      }
    }
  }
}

}  // namespace
}  // namespace vqcodec

#include "gaussian_sample_impl.h"
#include "integer_layers_impl.h"
#include "nearest_codeword_impl.h"

namespace vqcodec {
const KernelTable* avx2_kernels() {
  static const KernelTable table = {kLayerKernels, kSearchKernels, kGaussianKernels};
  return &table;
}
}  // namespace vqcodec
