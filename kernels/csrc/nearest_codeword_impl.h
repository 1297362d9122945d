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
      for (int64_t t = 0; t < book.tables; ++t) {
        const double bias = !finite ? kInfinity : book.bias ? book.bias[t * book.size + k] : 0.0;
        extent.in_range &= !(bias < -kHuge);
        book.h[t * padded + k] = bias < kHuge ? static_cast<float>(0.5 * (norm + bias)) : kInfinity;
      }
    }
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
};

typedef float Vec4 __attribute__((vector_size(16)));

inline Vec4 load4(const float* p) {
  Vec4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Four vectors by four dimensions at a time: half a shuffle for each value.
inline void pack_tile(const float* const* rows, const float* mean, float* out, int width) {
  const Vec4 m = load4(mean);
  const Vec4 a = load4(rows[0]) - m, b = load4(rows[1]) - m;
  const Vec4 c = load4(rows[2]) - m, d = load4(rows[3]) - m;
  typedef int32_t Pick __attribute__((vector_size(16)));
  const Vec4 ab_low = __builtin_shuffle(a, b, Pick{0, 4, 1, 5});
  const Vec4 ab_high = __builtin_shuffle(a, b, Pick{2, 6, 3, 7});
  const Vec4 cd_low = __builtin_shuffle(c, d, Pick{0, 4, 1, 5});
  const Vec4 cd_high = __builtin_shuffle(c, d, Pick{2, 6, 3, 7});
  const Vec4 columns[4] = {__builtin_shuffle(ab_low, cd_low, Pick{0, 1, 4, 5}),
                           __builtin_shuffle(ab_low, cd_low, Pick{2, 3, 6, 7}),
                           __builtin_shuffle(ab_high, cd_high, Pick{0, 1, 4, 5}),
                           __builtin_shuffle(ab_high, cd_high, Pick{2, 3, 6, 7})};
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

void scan(Panel* panel, const Codebook& book, int64_t first, int64_t last) {
  const float* h = book.h + panel->table * book.padded_size();
  if (book.split) return scan_split(panel, book, h, first, last);
  switch (panel->width / kLanes) {
    case 1: return scan_rows<1>(panel, book.dim, book.packed, h, first, last);
    case 2: return scan_rows<2>(panel, book.dim, book.packed, h, first, last);
    default: return scan_rows<kRows>(panel, book.dim, book.packed, h, first, last);
  }
}

// --- the bound and the last word -------------------------------------------------------------

// threshold: no score of a nearest codeword is above it (docs/kernels.md); decided: no block but
// the best one reaches it.
void judge(Panel* panel, const Codebook& book) {
  const float dim = static_cast<float>(book.dim);
  const float folded = dim < kFold ? dim : kFold + dim / kFold + 1;
  const float unit = 0x1p-24f * 1.01f * (kRoundings * folded + 8);
  const float radius = book.radius;
  // What underflow can cost, in sums and, by the components it takes away, in the norm.
  const float tiny = 4e-38f * dim;
  const float shortest = 1e-18f * std::sqrt(dim);
  for (int r = 0; r < panel->width; ++r) {
    const float norm = 1.001f * std::sqrt(panel->norm[r]) + shortest;
    const float reach = norm * (radius + shortest);
    const float best = panel->best[r];
    const float split = split_bound(book, norm, panel->split_low[r], panel->split_error[r]);
    const float upper =
        best + unit * std::fabs(best) + 4 * unit * reach + tiny * (2 + radius + norm) + 2 * split;
    const float threshold = upper + 2 * unit * std::fabs(upper);
    panel->threshold[r] = threshold;
    const bool trusted = reach < 1e29f && std::fabs(best) < 1e29f;
    panel->decided[r] = trusted && panel->second[r] > threshold ? 2 : trusted;
  }
}

// Which of a block's eight codewords score at most the threshold; x: the vector's column.
inline unsigned candidates(const float* x, int64_t width, int64_t dim, const float* block,
                           const float* h, float threshold) {
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
  return lanes_at_most(total, threshold);
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

void load_vector(const Vectors& x, int64_t row, double* out) {
  for (int64_t d = 0; d < x.dim; ++d)
    out[d] = value_at(x, row * x.row_stride + d * x.dim_stride);
}

// The codeword of the least float32 score in the best block, for precision "fast".
int64_t take_word(const Panel& panel, int r, const Codebook& book, const float* h) {
  const int64_t b = panel.block[r];
  const float* block = book.packed + b * book.dim * kBlock;
  Vec8 total = load8(h + b * kBlock);
  for (int64_t d = 0; d < book.dim; ++d)
    total = subtract_product(total, Vec8{} + panel.x[d * panel.width + r], load8(block + d * kBlock));
  float least = kInfinity;
  int64_t index = 0;
  for (int j = 0; j < kBlock; ++j) {
    if (total[j] < least) {
      least = total[j];
      index = b * kBlock + j;
    }
  }
  return index;
}

void finish(Panel* panel, const Vectors& x, const Codebook& book, bool exact, double* vector,
            Result* result) {
  const float* h = book.h + panel->table * book.padded_size();
  const float* bias = book.bias ? book.bias + panel->table * book.size : nullptr;
  const int width = panel->width;
  judge(panel, book);
  for (int r = 0; r < panel->count; ++r) {
    const int64_t row = panel->rows[r];
    if (!exact && book.in_range) {
      result->index[row] = take_word(*panel, r, book, h);
      if (result->distance) {
        load_vector(x, row, vector);
        Verdict verdict{book, bias, vector};
        verdict.hear(result->index[row]);
        result->distance[row] = static_cast<float>(verdict.score);
      }
      continue;
    }
    unsigned found = 0;
    const int decided = book.in_range ? panel->decided[r] : 0;
    if (decided == 2) {
      const int64_t b = panel->block[r];
      found = candidates(panel->x + r, width, book.dim, book.packed + b * book.dim * kBlock,
                         h + b * kBlock, panel->threshold[r]);
      if (found && (found & (found - 1)) == 0 && !result->distance) {
        result->index[row] = b * kBlock + __builtin_ctz(found);
        continue;
      }
    }
    load_vector(x, row, vector);
    Verdict verdict{book, bias, vector};
    if (decided == 2) {
      for (; found; found &= found - 1)
        verdict.hear(panel->block[r] * int64_t{kBlock} + __builtin_ctz(found));
    } else if (decided == 1) {
      ++result->rescored;
      for (int64_t b = 0; b < book.blocks(); ++b) {
        found = candidates(panel->x + r, width, book.dim, book.packed + b * book.dim * kBlock,
                           h + b * kBlock, panel->threshold[r]);
        for (; found; found &= found - 1) verdict.hear(b * kBlock + __builtin_ctz(found));
      }
    } else {
      ++result->rescored;
      for (int64_t k = 0; k < book.size; ++k) verdict.hear(k);
    }
    result->index[row] = verdict.index;
    if (result->distance) result->distance[row] = static_cast<float>(verdict.score);
  }
}

// --- one thread's share ----------------------------------------------------------------------

// Values of one panel's `split`.
int64_t panel_split(int64_t dim) { return split_size(dim, kTile); }

int64_t panels_at_once(int64_t dim) {
  const int64_t fit = kPanelBytes / (dim * kWidth * static_cast<int64_t>(sizeof(float)));
  return fit < 1 ? 1 : fit > 16 ? 16 : fit;
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Bytes of scratch memory, aligned to 64, that one call of `search` needs.
int64_t workspace_bytes(int64_t dim, int64_t tables) {
  const int64_t panels = panels_at_once(dim);
  return round_up(panels * static_cast<int64_t>(sizeof(Panel))) +
         round_up(panels * dim * kWidth * static_cast<int64_t>(sizeof(float))) +
         round_up(panels * panel_split(dim) * static_cast<int64_t>(sizeof(uint16_t))) +
         round_up(dim * static_cast<int64_t>(sizeof(double))) +
         round_up(kChunk * static_cast<int64_t>(sizeof(int32_t))) +
         round_up((tables + 1) * static_cast<int64_t>(sizeof(int32_t)));
}

// Vectors [begin, end) of a group.
void search(const Vectors& x, const Codebook& book, int64_t begin, int64_t end, bool exact,
            char* workspace, Result* result) {
  const int64_t dim = book.dim, at_once = panels_at_once(dim);
  auto take = [&workspace](int64_t bytes) {
    char* here = workspace;
    workspace += round_up(bytes);
    return here;
  };
  Panel* panels = reinterpret_cast<Panel*>(take(at_once * static_cast<int64_t>(sizeof(Panel))));
  float* values = reinterpret_cast<float*>(take(at_once * dim * kWidth * static_cast<int64_t>(sizeof(float))));
  uint16_t* splits = reinterpret_cast<uint16_t*>(take(at_once * panel_split(dim) * static_cast<int64_t>(sizeof(uint16_t))));
  double* vector = reinterpret_cast<double*>(take(dim * static_cast<int64_t>(sizeof(double))));
  int32_t* order = reinterpret_cast<int32_t*>(take(kChunk * static_cast<int64_t>(sizeof(int32_t))));
  int32_t* starts = reinterpret_cast<int32_t*>(take((book.tables + 1) * static_cast<int64_t>(sizeof(int32_t))));
  int64_t filled = 0;

  const int64_t block_bytes = dim * kBlock * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kBlocks = kTile / kBlock;
  const int64_t fit = kCodebookBytes / (block_bytes * kBlocks);
  const int64_t step = kBlocks * (fit < 1 ? 1 : fit);
  const int64_t wide = book.split ? kTile : kWidth;
  [[maybe_unused]] const TileState tiles;
  auto flush = [&] {
    for (int64_t first = 0; first < book.blocks() && book.in_range; first += step) {
      const int64_t last = first + step < book.blocks() ? first + step : book.blocks();
      for (int64_t p = 0; p < filled; ++p)
        scan(&panels[p], book, first, last);
    }
    for (int64_t p = 0; p < filled; ++p) finish(&panels[p], x, book, exact, vector, result);
    filled = 0;
  };
  // Rows base + order[i] (base + i without an order), i in [from, to), which share a table.
  auto add = [&](int64_t base, const int32_t* rows, int64_t from, int64_t to, int64_t table) {
    for (; from < to; from += wide) {
      Panel* panel = &panels[filled];
      panel->x = values + filled * dim * kWidth;
      panel->split = splits + filled * panel_split(dim);
      panel->count = static_cast<int>(to - from < wide ? to - from : wide);
      panel->width = book.split ? kTile : (panel->count + kLanes - 1) / kLanes * kLanes;
      panel->table = table;
      for (int r = 0; r < panel->count; ++r)
        panel->rows[r] = base + (rows ? rows[from + r] : from + r);
      pack_panel(x, book.mean, panel);
      if (book.split) split_panel(panel, dim);
      if (++filled == at_once) flush();
    }
  };
  if (!x.table) {
    add(begin, nullptr, 0, end - begin, 0);
  } else {
    // Vectors that share a table go together: its h is then one value for all lanes.
    for (int64_t base = begin; base < end; base += kChunk) {
      const int64_t count = end - base < kChunk ? end - base : kChunk;
      std::memset(starts, 0, sizeof(int32_t) * (book.tables + 1));
      for (int64_t i = 0; i < count; ++i) ++starts[x.table[base + i] + 1];
      for (int64_t t = 0; t < book.tables; ++t) starts[t + 1] += starts[t];
      for (int64_t i = 0; i < count; ++i) order[starts[x.table[base + i]]++] = static_cast<int32_t>(i);
      for (int64_t t = 0; t < book.tables; ++t)
        add(base, order, t == 0 ? 0 : starts[t - 1], starts[t], t);
    }
  }
  flush();
}

const SearchKernels kSearchKernels = {find_mean, pack_blocks, split_size, workspace_bytes, search};

}  // namespace
}  // namespace vqcodec
