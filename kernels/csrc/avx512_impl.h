// What the kernels of all AVX-512 instruction sets share: sixteen lanes, and vpdpbusd, the exact
// dot product of four bytes.
#define VQCODEC_LANES 16
#define VQCODEC_DOT_U8S8 1
#define VQCODEC_LAYER_RESULTS 1
#include <immintrin.h>

#include "kernels.h"
#include "lanes_impl.h"

namespace vqcodec {
namespace {

constexpr int kRows = 3, kCodes = 8;
constexpr int kRoundings = 1;

inline VecF subtract_product(VecF sum, VecF a, VecF b) { return _mm512_fnmadd_ps(a, b, sum); }
inline Vec8 subtract_product(Vec8 sum, Vec8 a, Vec8 b) { return _mm256_fnmadd_ps(a, b, sum); }
inline VecF minimum(VecF a, VecF b) { return _mm512_min_ps(a, b); }
inline VecF maximum(VecF a, VecF b) { return _mm512_max_ps(a, b); }

inline VecI multiply_even(VecI a, VecI b) { return (VecI)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
inline VecI reverse_fours(VecI a) {
  return (VecI)_mm512_shuffle_epi32((__m512i)a, static_cast<_MM_PERM_ENUM>(0x1b));
}
inline VecF square_root(VecF a) { return _mm512_sqrt_ps(a); }

#define VQCODEC_PAIRS 1
inline VecI add_products(VecI sum, VecI a, VecI b) {
  return (VecI)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
inline Vec8I add_products(Vec8I sum, Vec8I a, Vec8I b) {
  return (Vec8I)_mm256_dpwssd_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
inline VecI minimum(VecI a, VecI b) { return (VecI)_mm512_min_epi32((__m512i)a, (__m512i)b); }
inline VecI maximum(VecI a, VecI b) { return (VecI)_mm512_max_epi32((__m512i)a, (__m512i)b); }

// By way of a vector and not of a mask register: GCC 12 may spill an 8-bit mask as one byte and read
// it back as four.
inline unsigned lanes_at_most(Vec8I values, int32_t limit) {
  const __m256i above = _mm256_cmpgt_epi32((__m256i)values, _mm256_set1_epi32(limit));
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(above))) ^ 0xffu;
}

inline unsigned lanes_at_most(Vec8 values, float limit) {
  return static_cast<unsigned>(
      _mm256_movemask_ps(_mm256_cmp_ps(values, _mm256_set1_ps(limit), _CMP_LE_OQ)));
}

inline void dot_rows(const uint8_t* const* x, int quads, const int8_t* packed, int32_t (*acc)[16]) {
  // The rows are independent chains, which hides the latency of vpdpbusd.
  __m512i sums[kLayerRows];
  for (int r = 0; r < kLayerRows; ++r) sums[r] = _mm512_load_si512(acc[r]);
  for (int q = 0; q < quads; ++q) {
    const __m512i w = _mm512_loadu_si512(packed + q * 64);
    for (int r = 0; r < kLayerRows; ++r) {
      int32_t bytes;
      std::memcpy(&bytes, x[r] + 4 * q, 4);
      sums[r] = _mm512_dpbusd_epi32(sums[r], _mm512_set1_epi32(bytes), w);
    }
  }
  for (int r = 0; r < kLayerRows; ++r) _mm512_store_si512(acc[r], sums[r]);
}

inline void requantise_block(const int32_t* acc, const int32_t* multiplier, int shift, uint8_t* y) {
  const __m512i a = _mm512_loadu_si512(acc), m = _mm512_loadu_si512(multiplier);
  const __m512i half = _mm512_set1_epi64(int64_t{1} << (shift - 1));
  const __m128i count = _mm_cvtsi32_si128(shift);
  const auto scaled = [&](__m512i product) {
    const __m512i rounded = _mm512_sra_epi64(_mm512_add_epi64(product, half), count);
    return _mm512_min_epi64(_mm512_max_epi64(rounded, _mm512_setzero_si512()), _mm512_set1_epi64(255));
  };
  const __m512i even = scaled(_mm512_mul_epi32(a, m));
  const __m512i odd = scaled(_mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(m, 32)));
  const __m512i all = _mm512_or_si512(even, _mm512_slli_epi64(odd, 32));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8(all));
}

inline void keep_larger(const int32_t* acc, int block, int32_t* sum, int32_t* chosen) {
  const __m512i sums = _mm512_load_si512(acc);
  const __mmask16 larger = _mm512_cmpgt_epi32_mask(sums, _mm512_load_si512(sum));
  _mm512_mask_store_epi32(sum, larger, sums);
  _mm512_mask_store_epi32(chosen, larger, _mm512_set1_epi32(block));
}

inline int best_output(const int32_t* sum, const int32_t* block) {
  const __m512i sums = _mm512_load_si512(sum);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i outputs = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(block), 4), lanes);
  const __m512i largest = _mm512_set1_epi32(_mm512_reduce_max_epi32(sums));
  return _mm512_mask_reduce_min_epi32(_mm512_cmpeq_epi32_mask(sums, largest), outputs);
}

}  // namespace
}  // namespace vqcodec
