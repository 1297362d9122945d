// What vectors and codebooks are made of, the bound on the rounding of their float32 scores, and the
// packing of a codebook. The first of the headers of the search that an instruction set includes.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace vqcodec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Beyond these, sums in float32 might overflow. A codeword with a bias over kHuge is left out of
// the first pass, which then is trusted only below a tenth of it.
constexpr double kHuge = 1e30;
constexpr double kLongest = 1e14;
// Sums of more dimensions than this are folded, so that the bound grows with D / 64 only.
constexpr int kFold = 64;

typedef double Vec8D __attribute__((vector_size(64)));
typedef int64_t Mask8 __attribute__((vector_size(64)));

inline Vec8 load8(const float* p) {
  Vec8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = sign | 0x7f800000 | (magnitude << 13);
  } else if (magnitude >= 0x0400) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {  // zero or subnormal: magnitude * 2^-24, exactly
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float from_bfloat(uint16_t bfloat) {
  const uint32_t bits = static_cast<uint32_t>(bfloat) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Value i of an array of any of the three types.
inline float value_at(const Vectors& x, int64_t i) {
  switch (x.type) {
    case Scalar::kFloat16: return from_half(static_cast<const uint16_t*>(x.data)[i]);
    case Scalar::kBfloat16: return from_bfloat(static_cast<const uint16_t*>(x.data)[i]);
    default: return static_cast<const float*>(x.data)[i];
  }
}

// No score of a nearest codeword is above the threshold (docs/kernels.md); NaN, which nothing
// reaches, if float32 cannot tell. best: the least score; norm: ||x'||^2; split: `split_bound`.
struct Bound {
  float dim, unit, last_word, tiny, shortest, radius;

  explicit Bound(const Codebook& book) {
    dim = static_cast<float>(book.dim);
    const float folded = dim < kFold ? dim : kFold + dim / kFold + 1;
    unit = 0x1p-24f * 1.01f * (kRoundings * folded + 5);
    radius = book.radius;
    // Of the scores in float64, so that what they cannot tell apart is left to them.
    last_word = 0x1p-51f * (dim + 3);
    // What underflow can cost, in sums and, by the components it takes away, in the norm.
    tiny = 4e-38f * dim;
    shortest = 1e-18f * std::sqrt(dim);
  }

  // The norm is a sum of D terms in float32.
  inline float length(float norm) const {
    return (1.001f + 0x1p-23f * dim) * std::sqrt(norm) + shortest;
  }

  inline float threshold(float best, float length, float split) const {
    const float reach = length * (radius + shortest);
    const float upper = best + unit * std::fabs(best) + 4 * unit * reach +
                        tiny * (2 + radius + length) + 2 * split +
                        last_word * (length + radius) * (length + radius);
    // An infinite threshold would let in the codewords that fill up the last block.
    const bool trusted = reach < 1e29f && std::fabs(best) < 1e29f && upper < 1e30f;
    return trusted ? upper + 2 * unit * std::fabs(upper) : std::numeric_limits<float>::quiet_NaN();
  }
};

// Mean of dimensions [first, last) over the codewords that are finite and not too long.
void find_mean(const Codebook& book, int64_t first, int64_t last) {
  constexpr int64_t kSome = 64;
  for (int64_t d0 = first; d0 < last; d0 += kSome) {
    const int64_t count = last - d0 < kSome ? last - d0 : kSome;
    double sums[kSome] = {};
    int64_t used = 0;
    for (int64_t k = 0; k < book.size; ++k) {
      const float* c = book.codewords + k * book.dim + d0;
      bool usable = true;
      for (int64_t d = 0; d < count; ++d) usable &= std::fabs(c[d]) <= static_cast<float>(kLongest);
      if (!usable) continue;
      ++used;
      for (int64_t d = 0; d < count; ++d) sums[d] += c[d];
    }
    for (int64_t d = 0; d < count; ++d)
      book.mean[d0 + d] = used ? static_cast<float>(sums[d] / static_cast<double>(used)) : 0.0f;
  }
}

void split_blocks(const Codebook& book, int64_t first, int64_t last, Extent* extent);

// Packs blocks [first, last); the mean must be there.
Extent pack_blocks(const Codebook& book, int64_t first, int64_t last) {
  Extent extent{0.0, 0.0, 0.0, true};
  const int64_t padded = book.padded_size();
  for (int64_t b = first; b < last; ++b) {
    float* block = book.packed + b * book.dim * kBlock;
    double* norms = book.norms + b * kBlock;
    for (int j = 0; j < kBlock; ++j) {
      const int64_t k = b * kBlock + j;
      const float* c = book.codewords + k * book.dim;
      double norm = std::numeric_limits<double>::quiet_NaN();
      if (k < book.size) {
        double sums[4] = {};
        int64_t d = 0;
        for (; d + 4 <= book.dim; d += 4) {
          for (int i = 0; i < 4; ++i) {
            const double difference = static_cast<double>(c[d + i]) - book.mean[d + i];
            sums[i] += difference * difference;
            block[(d + i) * kBlock + j] = c[d + i] - book.mean[d + i];
          }
        }
        for (; d < book.dim; ++d) {
          const double difference = static_cast<double>(c[d]) - book.mean[d];
          sums[0] += difference * difference;
          block[d * kBlock + j] = c[d] - book.mean[d];
        }
        norm = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      }
      const bool finite = norm < std::numeric_limits<double>::infinity();
      if (!finite) {
        for (int64_t d = 0; d < book.dim; ++d) block[d * kBlock + j] = 0.0f;
      } else {
        const double length = std::sqrt(norm);
        extent.radius = length > extent.radius ? length : extent.radius;
        extent.in_range &= length < kLongest;
      }
      norms[j] = finite ? norm : kInfinity;
    }
  }
  for (int64_t t = 0; t < book.tables; ++t) {
    float* h = book.h + t * padded;
    const float* bias = book.bias ? book.bias + t * book.size : nullptr;
    Mask8 outside{};
    for (int64_t k = first * kBlock; k < last * kBlock; k += kBlock) {
      Vec8 added{};
      if (bias && k + kBlock <= book.size) {
        added = load8(bias + k);
      } else if (bias) {
        for (int j = 0; k + j < book.size; ++j) added[j] = bias[k + j];
      }
      const Vec8D wide = __builtin_convertvector(added, Vec8D);
      Vec8D norm;
      std::memcpy(&norm, book.norms + k, sizeof norm);
      outside |= wide < -kHuge;
      // Of a codeword that is not finite, or fills up the last block, the norm is infinite.
      const Vec8D usable = wide < kHuge ? 0.5 * (norm + wide) : Vec8D{} + kInfinity;
      const Vec8 half = __builtin_convertvector(usable, Vec8);
      std::memcpy(h + k, &half, sizeof half);
    }
    for (int j = 0; j < kBlock; ++j) extent.in_range &= outside[j] == 0;
  }
  if (last == book.blocks())
    for (int64_t t = 0; t < book.tables; ++t)
      for (int64_t k = last * kBlock; k < padded; ++k) book.h[t * padded + k] = kInfinity;
  if (book.split) split_blocks(book, first, last, &extent);
  return extent;
}

}  // namespace
}  // namespace vqcodec
