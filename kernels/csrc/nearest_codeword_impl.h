// The search, written once over vectors of kLanes floats; included by the translation unit of each
// instruction set after it has defined `subtract_product`, `minimum`, `maximum`, `lanes_at_most`, the
// size of its tiles (kRows lane vectors by kCodes codewords) and its roundings a product-sum.
// Templates of the standard library are kept out: the linker might take a copy of one that was
// compiled for another instruction set.
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
constexpr int kWidth = kRows * kLanes;  // vectors in a panel
constexpr int64_t kPanelBytes = 1 << 18;
constexpr int64_t kCodebookBytes = 1 << 19;
constexpr int64_t kChunk = 8192;  // vectors sorted by table at a time
constexpr int64_t kFew = 4;       // vectors that are not worth a panel

typedef double Vec8D __attribute__((vector_size(64)));

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

// --- the bound -------------------------------------------------------------------------------

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

// --- packing the codebook --------------------------------------------------------------------

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
  const int64_t from = first * kBlock, to = last * kBlock < book.size ? last * kBlock : book.size;
  for (int64_t t = 0; t < book.tables; ++t) {
    float* h = book.h + t * padded;
    const float* bias = book.bias ? book.bias + t * book.size : nullptr;
    int64_t outside = 0;  // as wide as the values, for the loop to be vectorised
    for (int64_t k = from; k < to; ++k) {
      const double added = bias ? bias[k] : 0.0f;
      const double usable = added < kHuge ? book.norms[k] : kInfinity;
      outside |= added < -kHuge ? 1 : 0;
      // An infinite norm, of a codeword that is not finite, stays infinite; of a NaN bias, too.
      h[k] = static_cast<float>(usable < kInfinity ? 0.5 * (usable + added) : kInfinity);
    }
    extent.in_range &= outside == 0;
    for (int64_t k = to; k < last * kBlock; ++k) h[k] = kInfinity;
  }
  if (last == book.blocks())
    for (int64_t t = 0; t < book.tables; ++t)
      for (int64_t k = last * kBlock; k < padded; ++k) book.h[t * padded + k] = kInfinity;
  if (book.split) split_blocks(book, first, last, &extent);
  return extent;
}

// --- panels ----------------------------------------------------------------------------------

struct Panel {
  float* x;  // [D][width], centred
  int width, count;
  int64_t table;
  int64_t rows[kWidth];
  alignas(64) float norm[kWidth];    // ||x'||^2
  alignas(64) float best[kWidth];    // least score
  alignas(64) float second[kWidth];  // least score of the blocks other than `block`
  alignas(64) int32_t block[kWidth];
  alignas(64) float threshold[kWidth];
  uint16_t* split;  // [D / 32][2][2][16][16][2]: high and low parts, halves of the lanes, pairs of dimensions
  alignas(64) float split_low[kWidth];    // squared norms, zero without a split
  alignas(64) float split_error[kWidth];
  alignas(64) int32_t decided[kWidth];
  int32_t* pairs;  // [D / 2][width] pairs of int16, and what belongs to the pass over them
  alignas(64) int32_t fits[kWidth];
  alignas(64) float pair_error[kWidth];  // squared norm of the rounding error
  alignas(64) int32_t best_int[kWidth];
  alignas(64) int32_t second_int[kWidth];
  alignas(64) int32_t threshold_int[kWidth];
};

typedef float Vec4 __attribute__((vector_size(16)));

inline Vec4 load4(const float* p) {
  Vec4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

#ifdef __clang__
#define VQCODEC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Pick __attribute__((vector_size(16)));
#define VQCODEC_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Pick{__VA_ARGS__})
#endif

// Four vectors by four dimensions at a time: half a shuffle for each value.
inline void pack_tile(const float* const* rows, const float* mean, float* out, int width) {
  const Vec4 m = load4(mean);
  const Vec4 a = load4(rows[0]) - m, b = load4(rows[1]) - m;
  const Vec4 c = load4(rows[2]) - m, d = load4(rows[3]) - m;
  const Vec4 ab_low = VQCODEC_SHUFFLE(a, b, 0, 4, 1, 5);
  const Vec4 ab_high = VQCODEC_SHUFFLE(a, b, 2, 6, 3, 7);
  const Vec4 cd_low = VQCODEC_SHUFFLE(c, d, 0, 4, 1, 5);
  const Vec4 cd_high = VQCODEC_SHUFFLE(c, d, 2, 6, 3, 7);
  const Vec4 columns[4] = {VQCODEC_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5),
                           VQCODEC_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7),
                           VQCODEC_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5),
                           VQCODEC_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(out + i * width, &columns[i], sizeof(Vec4));
}

void pack_panel(const Vectors& x, const float* mean, Panel* panel) {
  const int width = panel->width;
  // The lanes that are left over repeat the last vector.
  for (int r = panel->count; r < width; ++r) panel->rows[r] = panel->rows[panel->count - 1];
  int64_t done = 0;
  if (x.type == Scalar::kFloat32 && x.dim_stride == 1) {
    const float* data = static_cast<const float*>(x.data);
    done = x.dim / 4 * 4;
    for (int r = 0; r < width; r += 4) {
      const float* rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = data + panel->rows[r + i] * x.row_stride;
      for (int64_t d = 0; d < done; d += 4) {
        const float* here[4] = {rows[0] + d, rows[1] + d, rows[2] + d, rows[3] + d};
        pack_tile(here, mean + d, panel->x + d * width + r, width);
      }
    }
  }
  for (int64_t d = done; d < x.dim; ++d)
    for (int r = 0; r < width; ++r)
      panel->x[d * width + r] =
          value_at(x, panel->rows[r] * x.row_stride + d * x.dim_stride) - mean[d];
  for (int r = 0; r < width; r += kLanes) {
    VecF norm{};
    for (int64_t d = 0; d < x.dim; ++d) {
      const VecF value = load(panel->x + d * width + r);
      norm += value * value;
    }
    store(panel->norm + r, norm);
    store(panel->best + r, splat(kInfinity));
    store(panel->second + r, splat(kInfinity));
    store(panel->split_low + r, VecF{});
    store(panel->split_error + r, VecF{});
    std::memset(panel->block + r, 0, sizeof(int32_t) * kLanes);
    const VecI largest = VecI{} + std::numeric_limits<int32_t>::max();
    std::memcpy(panel->best_int + r, &largest, sizeof largest);
    std::memcpy(panel->second_int + r, &largest, sizeof largest);
  }
}

// --- the first pass --------------------------------------------------------------------------

template <int R>
struct Running {
  VecF best[R], second[R];
  VecI block[R];

  inline void read(const Panel& panel) {
    for (int r = 0; r < R; ++r) {
      best[r] = load(panel.best + r * kLanes);
      second[r] = load(panel.second + r * kLanes);
      std::memcpy(&block[r], panel.block + r * kLanes, sizeof(VecI));
    }
  }

  inline void write(Panel* panel) const {
    for (int r = 0; r < R; ++r) {
      store(panel->best + r * kLanes, best[r]);
      store(panel->second + r * kLanes, second[r]);
      std::memcpy(panel->block + r * kLanes, &block[r], sizeof(VecI));
    }
  }

  // Blocks come in ascending order: of equal scores the first block stays.
  inline void take(int r, VecF least, int32_t b) {
    second[r] = minimum(second[r], maximum(best[r], least));
    block[r] = least < best[r] ? VecI{} + b : block[r];
    best[r] = minimum(best[r], least);
  }
};

// D <= 8: the panel's vectors stay in registers.
template <int R, int D>
void scan_short(Panel* panel, const float* packed, const float* h, int64_t first, int64_t last) {
  Running<R> running;
  running.read(*panel);
  VecF x[R][D];
  for (int r = 0; r < R; ++r)
    for (int d = 0; d < D; ++d) x[r][d] = load(panel->x + d * (R * kLanes) + r * kLanes);
  for (int64_t b = first; b < last; ++b) {
    const float* c = packed + b * D * kBlock;
    const float* hb = h + b * kBlock;
    VecF least[R];
#pragma GCC unroll 8
    for (int j = 0; j < kBlock; ++j) {
      VecF score[R];
      for (int r = 0; r < R; ++r) score[r] = splat(hb[j]);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        const VecF value = splat(c[d * kBlock + j]);
        for (int r = 0; r < R; ++r) score[r] = subtract_product(score[r], x[r][d], value);
      }
      for (int r = 0; r < R; ++r) least[r] = j == 0 ? score[r] : minimum(least[r], score[r]);
    }
    for (int r = 0; r < R; ++r) running.take(r, least[r], static_cast<int32_t>(b));
  }
  running.write(panel);
}

// Any D: kCodes codewords by R lane vectors of sums stay in registers.
template <int R>
void scan_long(Panel* panel, int64_t dim, const float* packed, const float* h, int64_t first,
               int64_t last) {
  constexpr int kStride = R * kLanes;
  Running<R> running;
  running.read(*panel);
  for (int64_t b = first; b < last; ++b) {
    const float* c = packed + b * dim * kBlock;
    const float* hb = h + b * kBlock;
    VecF least[R];
    for (int part = 0; part < kBlock; part += kCodes) {
      VecF sum[kCodes][R];
#pragma GCC unroll 8
      for (int j = 0; j < kCodes; ++j)
        for (int r = 0; r < R; ++r) sum[j][r] = splat(hb[part + j]);
      VecF folded[kCodes][R];
      for (int64_t start = 0; start < dim; start += kFold) {
        const int64_t stop = start + kFold < dim ? start + kFold : dim;
        if (start > 0) {
          for (int j = 0; j < kCodes; ++j)
            for (int r = 0; r < R; ++r) {
              folded[j][r] = start == kFold ? sum[j][r] : folded[j][r] + sum[j][r];
              sum[j][r] = VecF{};
            }
        }
        for (int64_t d = start; d < stop; ++d) {
          VecF x[R];
          for (int r = 0; r < R; ++r) x[r] = load(panel->x + d * kStride + r * kLanes);
#pragma GCC unroll 8
          for (int j = 0; j < kCodes; ++j) {
            const VecF value = splat(c[d * kBlock + part + j]);
            for (int r = 0; r < R; ++r) sum[j][r] = subtract_product(sum[j][r], x[r], value);
          }
        }
      }
      if (dim > kFold)
        for (int j = 0; j < kCodes; ++j)
          for (int r = 0; r < R; ++r) sum[j][r] += folded[j][r];
      for (int r = 0; r < R; ++r) {
        VecF some = sum[0][r];
        for (int j = 1; j < kCodes; ++j) some = minimum(some, sum[j][r]);
        least[r] = part == 0 ? some : minimum(least[r], some);
      }
    }
    for (int r = 0; r < R; ++r) running.take(r, least[r], static_cast<int32_t>(b));
  }
  running.write(panel);
}

template <int R>
void scan_rows(Panel* panel, int64_t dim, const float* packed, const float* h, int64_t first,
               int64_t last) {
  switch (dim) {
    case 1: return scan_short<R, 1>(panel, packed, h, first, last);
    case 2: return scan_short<R, 2>(panel, packed, h, first, last);
    case 3: return scan_short<R, 3>(panel, packed, h, first, last);
    case 4: return scan_short<R, 4>(panel, packed, h, first, last);
    case 8: return scan_short<R, 8>(panel, packed, h, first, last);
    default: return scan_long<R>(panel, dim, packed, h, first, last);
  }
}

#ifdef VQCODEC_TILES
}  // namespace
}  // namespace vqcodec
#include "bfloat16_split_impl.h"
namespace vqcodec {
namespace {
#else
void split_blocks(const Codebook&, int64_t, int64_t, Extent*) {}
void split_panel(Panel*, int64_t) {}
void scan_split(Panel*, const Codebook&, const float*, int64_t, int64_t) {}
float split_bound(const Codebook&, float, float, float) { return 0.0f; }
int64_t split_size(int64_t, int64_t) { return 0; }
struct TileState {};
#endif

#ifdef VQCODEC_PAIRS
}  // namespace
}  // namespace vqcodec
#include "int16_pass_impl.h"
namespace vqcodec {
namespace {
#else
int64_t pairs_of(int64_t) { return 0; }
int64_t pairs_size(int64_t, int64_t) { return 0; }
double quantise_blocks(const Codebook&, int64_t, int64_t) { return -1.0; }
void quantise_panel(Panel*, const Codebook&) {}
void scan_pairs(Panel*, const Codebook&, int64_t, int64_t) {}
void judge_pairs(Panel*, const Codebook&) {}
unsigned pair_candidates(const int32_t*, int64_t, int64_t, const int32_t*, const int32_t*, int32_t) { return 0; }
#endif

void scan(Panel* panel, const Codebook& book, int64_t first, int64_t last) {
  const float* h = book.h + panel->table * book.padded_size();
  if (book.split) return scan_split(panel, book, h, first, last);
  switch (panel->width / kLanes) {
    case 1: return scan_rows<1>(panel, book.dim, book.packed, h, first, last);
    case 2: return scan_rows<2>(panel, book.dim, book.packed, h, first, last);
    default: return scan_rows<kRows>(panel, book.dim, book.packed, h, first, last);
  }
}

// --- the last word ---------------------------------------------------------------------------

// decided: 2 if no block but the best one reaches the threshold, 1 if one does, 0 if float32 cannot tell.
void judge(Panel* panel, const Codebook& book) {
  const Bound bound(book);
  for (int r = 0; r < panel->width; ++r) {
    const float length = bound.length(panel->norm[r]);
    const float split = split_bound(book, length, panel->split_low[r], panel->split_error[r]);
    const float threshold = bound.threshold(panel->best[r], length, split);
    panel->threshold[r] = threshold;
    panel->decided[r] = panel->second[r] > threshold ? 2 : threshold == threshold;
  }
}

// Scores of a block's eight codewords; x: the vector's column.
inline Vec8 scores(const float* x, int64_t width, int64_t dim, const float* block, const float* h) {
  Vec8 total = load8(h);
  for (int64_t start = 0; start < dim; start += kFold) {
    const int64_t stop = start + kFold < dim ? start + kFold : dim;
    Vec8 sums[4] = {};
    int64_t d = start;
    for (; d + 4 <= stop; d += 4)
      for (int i = 0; i < 4; ++i)
        sums[i] = subtract_product(sums[i], Vec8{} + x[(d + i) * width], load8(block + (d + i) * kBlock));
    for (; d < stop; ++d)
      sums[0] = subtract_product(sums[0], Vec8{} + x[d * width], load8(block + d * kBlock));
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  return total;
}

// Which of them are at most the threshold.
inline unsigned candidates(const float* x, int64_t width, int64_t dim, const float* block,
                           const float* h, float threshold) {
  return lanes_at_most(scores(x, width, dim, block, h), threshold);
}

// ||x - c||^2 in the direct form. One order of sums on every instruction set, so that all agree.
inline double squared_distance(const double* x, const float* c, int64_t dim) {
  Vec8D sums{};
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    Vec8D a;
    std::memcpy(&a, x + d, sizeof a);
    const Vec8D difference = a - __builtin_convertvector(load8(c + d), Vec8D);
    sums += difference * difference;
  }
  for (; d < dim; ++d) {
    const double difference = x[d] - c[d];
    sums[d % 8] += difference * difference;
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// One vector's last word: codewords scored in float64, the least score, of equal ones the first.
struct Verdict {
  const Codebook& book;
  const float* bias;  // (K) or null
  const double* x;
  double score = std::numeric_limits<double>::infinity();
  int64_t index = 0;

  // NaN is not less than anything: such a codeword is never chosen.
  inline void hear(int64_t k) {
    const double here = squared_distance(x, book.codewords + k * book.dim, book.dim) +
                        (bias ? static_cast<double>(bias[k]) : 0.0);
    if (here < score) {
      score = here;
      index = k;
    }
  }
};

inline void prefetch_vector(const Vectors& x, int64_t row) {
  const int64_t item = x.type == Scalar::kFloat32 ? 4 : 2;
  __builtin_prefetch(static_cast<const char*>(x.data) + row * x.row_stride * item, 0, 2);
}

void load_vector(const Vectors& x, int64_t row, double* out) {
  for (int64_t d = 0; d < x.dim; ++d)
    out[d] = value_at(x, row * x.row_stride + d * x.dim_stride);
}

// What one thread works on.
struct Search {
  const Vectors& x;
  const Codebook& book;
  double* vector;  // (D)
  float* centred;  // (D)
  Result* result;

  Verdict open(int64_t row, int64_t table) const {
    load_vector(x, row, vector);
    return Verdict{book, book.bias ? book.bias + table * book.size : nullptr, vector};
  }

  void close(int64_t row, const Verdict& verdict) const {
    result->index[row] = verdict.index;
    if (result->distance) result->distance[row] = static_cast<float>(verdict.score);
  }

  // Codewords `found` of block b.
  void settle(int64_t row, int64_t table, int64_t b, unsigned found) const {
    if ((found & (found - 1)) == 0 && !result->distance) {
      result->index[row] = b * kBlock + __builtin_ctz(found);
      return;
    }
    Verdict verdict = open(row, table);
    for (; found; found &= found - 1) verdict.hear(b * kBlock + __builtin_ctz(found));
    close(row, verdict);
  }

  // All codewords that reach the threshold, with the vector's column x of a panel.
  void settle_all(int64_t row, int64_t table, const float* column, int64_t width, float threshold) const {
    const float* h = book.h + table * book.padded_size();
    Verdict verdict = open(row, table);
    if (threshold == threshold) {
      for (int64_t b = 0; b < book.blocks(); ++b) {
        unsigned found = candidates(column, width, book.dim, book.packed + b * book.dim * kBlock,
                                    h + b * kBlock, threshold);
        for (; found; found &= found - 1) verdict.hear(b * kBlock + __builtin_ctz(found));
      }
    } else {
      for (int64_t k = 0; k < book.size; ++k) verdict.hear(k);
    }
    close(row, verdict);
  }

  // A vector by itself: a panel would be mostly empty.
  void search_one(int64_t row, int64_t table) const {
    const float* h = book.h + table * book.padded_size();
    float norm = 0.0f;
    for (int64_t d = 0; d < book.dim; ++d) {
      centred[d] = value_at(x, row * x.row_stride + d * x.dim_stride) - book.mean[d];
      norm += centred[d] * centred[d];
    }
    Vec8 least = Vec8{} + kInfinity;
    for (int64_t b = 0; b < book.blocks(); ++b) {
      const Vec8 score = scores(centred, 1, book.dim, book.packed + b * book.dim * kBlock, h + b * kBlock);
      least = score < least ? score : least;
    }
    float best = kInfinity;
    for (int j = 0; j < kBlock; ++j) best = least[j] < best ? least[j] : best;
    const Bound bound(book);
    settle_all(row, table, centred, 1, bound.threshold(best, bound.length(norm), 0.0f));
  }

  // Returns how many vectors the pass left undecided.
  int64_t finish(Panel* panel) const {
    int64_t undecided = 0;
    const float* h = book.h + panel->table * book.padded_size();
    judge(panel, book);
    for (int r = 0; r < panel->count; ++r) {
      const int64_t row = panel->rows[r], b = panel->block[r];
      if (!book.in_range) {
        settle_all(row, panel->table, nullptr, 0, std::numeric_limits<float>::quiet_NaN());
        ++undecided;
        continue;
      }
      const float* block = book.packed + b * book.dim * kBlock;
      unsigned found = 0;
      if (panel->decided[r] == 2)
        found = candidates(panel->x + r, panel->width, book.dim, block, h + b * kBlock, panel->threshold[r]);
      if (found) {
        settle(row, panel->table, b, found);
      } else {
        settle_all(row, panel->table, panel->x + r, panel->width, panel->threshold[r]);
        ++undecided;
      }
    }
    return undecided;
  }

  // Vectors that the integers leave undecided are listed.
  int64_t finish_pairs(Panel* panel, int64_t* left_rows, int32_t* left_tables, int64_t left) const {
    const int32_t* h = book.h_int + panel->table * book.padded_size();
    const int64_t pairs = pairs_of(book.dim);
    judge_pairs(panel, book);
    for (int r = 0; r < panel->count; ++r) {
      const int64_t b = panel->block[r];
      unsigned found = 0;
      if (panel->decided[r] == 2)
        found = pair_candidates(panel->pairs + r, panel->width, pairs, book.pairs + b * pairs * kBlock,
                                h + b * kBlock, panel->threshold_int[r]);
      if (found) {
        settle(panel->rows[r], panel->table, b, found);
      } else {
        left_rows[left] = panel->rows[r];
        left_tables[left++] = static_cast<int32_t>(panel->table);
      }
    }
    return left;
  }
};

// --- one thread's share ----------------------------------------------------------------------

// Values of one panel's `split`.
int64_t panel_split(int64_t dim) { return split_size(dim, kTile); }

int64_t panels_at_once(int64_t dim) {
  const int64_t fit = kPanelBytes / (dim * kWidth * static_cast<int64_t>(sizeof(float)));
  return fit < 1 ? 1 : fit > 16 ? 16 : fit;
}

// Scratch memory of one call of `search`; with a null base, only its size.
struct Workspace {
  Panel* panels;
  float* values;
  uint16_t* splits;
  int32_t* pairs;
  double* vector;
  float* centred;
  int64_t* left_rows;
  int32_t* left_tables;
  int32_t* order;
  int32_t* starts;
  int64_t bytes = 0;

  Workspace(char* base, int64_t dim, int64_t tables) {
    const int64_t count = panels_at_once(dim);
    take(base, count, &panels);
    take(base, count * dim * kWidth, &values);
    take(base, count * panel_split(dim), &splits);
    take(base, count * pairs_of(dim) * kWidth, &pairs);
    take(base, dim, &vector);
    take(base, dim, &centred);
    take(base, kChunk, &left_rows);
    take(base, kChunk, &left_tables);
    take(base, kChunk, &order);
    take(base, tables + 1, &starts);
  }

 private:
  template <typename T>
  void take(char* base, int64_t count, T** out) {
    *out = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
    bytes += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
};

int64_t workspace_bytes(int64_t dim, int64_t tables) { return Workspace(nullptr, dim, tables).bytes; }

// Vectors [begin, end) of a group.
void search(const Vectors& x, const Codebook& book, int64_t begin, int64_t end, char* memory,
            Result* result) {
  const Workspace work(memory, book.dim, book.tables);
  const Search one{x, book, work.vector, work.centred, result};
  const int64_t dim = book.dim, at_once = panels_at_once(dim);
  const int64_t block_bytes = dim * kBlock * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kBlocks = kTile / kBlock;
  const int64_t fit = kCodebookBytes / (block_bytes * kBlocks);
  const int64_t step = kBlocks * (fit < 1 ? 1 : fit);
  [[maybe_unused]] const TileState tiles;
  bool in_pairs = book.scale > 0.0f;
  int64_t filled = 0, left = 0, undecided = 0;

  auto flush = [&] {
    for (int64_t first = 0; first < book.blocks() && book.in_range; first += step) {
      const int64_t last = first + step < book.blocks() ? first + step : book.blocks();
      for (int64_t p = 0; p < filled; ++p)
        in_pairs ? scan_pairs(&work.panels[p], book, first, last) : scan(&work.panels[p], book, first, last);
    }
    for (int64_t p = 0; p < filled; ++p) {
      if (in_pairs)
        left = one.finish_pairs(&work.panels[p], work.left_rows, work.left_tables, left);
      else
        undecided += one.finish(&work.panels[p]);
    }
    filled = 0;
  };
  // Rows row(i), i in [from, to), which share a table.
  auto add = [&](int64_t from, int64_t to, int64_t table, const auto& row) {
    const int64_t wide = !in_pairs && book.split ? kTile : kWidth;
    for (; from < to; from += wide) {
      Panel* panel = &work.panels[filled];
      panel->x = work.values + filled * dim * kWidth;
      panel->split = work.splits + filled * panel_split(dim);
      panel->pairs = work.pairs + filled * pairs_of(dim) * kWidth;
      panel->count = static_cast<int>(to - from < wide ? to - from : wide);
      panel->width = wide == kTile ? kTile : (panel->count + kLanes - 1) / kLanes * kLanes;
      panel->table = table;
      for (int r = 0; r < panel->count; ++r) panel->rows[r] = row(from + r);
      pack_panel(x, book.mean, panel);
      if (in_pairs)
        quantise_panel(panel, book);
      else if (book.split)
        split_panel(panel, dim);
      if (++filled == at_once) flush();
    }
  };

  for (int64_t base = begin; base < end; base += kChunk) {
    const int64_t count = end - base < kChunk ? end - base : kChunk;
    if (!x.table) {
      add(0, count, 0, [=](int64_t i) { return base + i; });
    } else {
      // Vectors that share a table go together: its h is then one value for all lanes.
      int32_t *starts = work.starts, *order = work.order;
      std::memset(starts, 0, sizeof(int32_t) * (book.tables + 1));
      // The vectors are about to be read in the order of their tables, which no hardware foresees.
      for (int64_t i = 0; i < count; ++i) {
        ++starts[x.table[base - begin + i] + 1];
        prefetch_vector(x, base + i);
      }
      for (int64_t t = 0; t < book.tables; ++t) starts[t + 1] += starts[t];
      for (int64_t i = 0; i < count; ++i) order[starts[x.table[base - begin + i]]++] = static_cast<int32_t>(i);
      for (int64_t t = 0; t < book.tables; ++t)
        add(t == 0 ? 0 : starts[t - 1], starts[t], t, [=](int64_t i) { return base + order[i]; });
    }
    flush();
    result->rescored += undecided + left;
    undecided = 0;
    if (!in_pairs) continue;
    in_pairs = false;
    for (int64_t from = 0, to; from < left; from = to) {
      for (to = from + 1; to < left && work.left_tables[to] == work.left_tables[from];) ++to;
      if (to - from < kFew) {
        for (int64_t i = from; i < to; ++i) one.search_one(work.left_rows[i], work.left_tables[i]);
      } else {
        add(from, to, work.left_tables[from], [&](int64_t i) { return work.left_rows[i]; });
      }
    }
    flush();
    // Where 16 bits leave too many undecided, the rest of the vectors does without them.
    in_pairs = left * 4 < count;
    left = 0;
    undecided = 0;
  }
}

const SearchKernels kSearchKernels = {find_mean,  pack_blocks,     pairs_size, quantise_blocks,
                                      split_size, workspace_bytes, search};

}  // namespace
}  // namespace vqcodec
