// What the kernels of all AVX-512 instruction sets share: sixteen lanes, and vpdpbusd, the exact
// dot product of four bytes.
#define VQCODEC_LANES 16
#define VQCODEC_DOT_U8S8 1
#include <immintrin.h>

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

inline void dot_block(const uint8_t* x, int quads, const int8_t* packed, int32_t* acc) {
  // Four chains hide the latency of vpdpbusd.
  __m512i sum0 = _mm512_load_si512(acc);
  __m512i sum1 = _mm512_setzero_si512();
  __m512i sum2 = _mm512_setzero_si512();
  __m512i sum3 = _mm512_setzero_si512();
  int q = 0;
  for (; q + 4 <= quads; q += 4) {
    int32_t bytes[4];
    std::memcpy(bytes, x + 4 * q, 16);
    const int8_t* w = packed + q * 64;
    sum0 = _mm512_dpbusd_epi32(sum0, _mm512_set1_epi32(bytes[0]), _mm512_loadu_si512(w));
    sum1 = _mm512_dpbusd_epi32(sum1, _mm512_set1_epi32(bytes[1]), _mm512_loadu_si512(w + 64));
    sum2 = _mm512_dpbusd_epi32(sum2, _mm512_set1_epi32(bytes[2]), _mm512_loadu_si512(w + 128));
    sum3 = _mm512_dpbusd_epi32(sum3, _mm512_set1_epi32(bytes[3]), _mm512_loadu_si512(w + 192));
  }
  for (; q < quads; ++q) {
    int32_t bytes;
    std::memcpy(&bytes, x + 4 * q, 4);
    sum0 = _mm512_dpbusd_epi32(sum0, _mm512_set1_epi32(bytes), _mm512_loadu_si512(packed + q * 64));
  }
  _mm512_store_si512(acc, _mm512_add_epi32(_mm512_add_epi32(sum0, sum1), _mm512_add_epi32(sum2, sum3)));
}

}  // namespace
}  // namespace vqcodec
