// The first pass in 16-bit integers, where an instruction set has `add_products`: twice the products
// of float32 an instruction. x' and c' are scaled by one factor, so that the longest c' has length
// kLongestCodeword, and rounded; sums are exact in int32 for vectors of length up to kLongestVector.
// Longer vectors, and those that the bound leaves undecided, go on to the pass in float32.

namespace vqcodec {
namespace {

// Dimensions: below, codewords are too close for 16 bits; above, errors outgrow `kTrusted`.
constexpr int64_t kPairsFrom = 3, kPairsTo = 4096;
constexpr float kLongestVector = 32766.0f;
// |x.c| < 2^29 by Cauchy and Schwarz, also of partial sums. Codewords with a larger h cannot win
// against a score below kTrusted.
constexpr double kLargestH = (1 << 30) - 1;
constexpr int32_t kTrusted = (1 << 29) - (1 << 22);

int64_t pairs_of(int64_t dim) { return (dim + 1) / 2; }

int64_t pairs_size(int64_t dim, int64_t blocks) {
  return dim < kPairsFrom || dim > kPairsTo ? 0 : blocks * kBlock * pairs_of(dim);
}

// Writes pairs and h of blocks [first, last) by `scale`; returns the longest rounding error of a
// codeword, in units of the scaled values, or -1 if a bias is out of range.
double quantise_blocks(const Codebook& book, int64_t first, int64_t last) {
  const int64_t padded = book.padded_size(), pairs = pairs_of(book.dim);
  const double scale = book.scale;
  double longest = 0.0;
  for (int64_t b = first; b < last; ++b) {
    const float* block = book.packed + b * book.dim * kBlock;
    int32_t* out = book.pairs + b * pairs * kBlock;
    double errors[kBlock] = {};
    for (int64_t p = 0; p < pairs; ++p) {
      for (int j = 0; j < kBlock; ++j) {
        int32_t both[2] = {0, 0};
        for (int64_t i = 0; i < 2 && 2 * p + i < book.dim; ++i) {
          const double value = static_cast<double>(block[(2 * p + i) * kBlock + j]) * scale;
          const double rounded = std::nearbyint(value);
          errors[j] += (value - rounded) * (value - rounded);
          // Negative, so that the score is a sum.
          both[i] = -static_cast<int32_t>(rounded);
        }
        out[p * kBlock + j] = static_cast<int32_t>((static_cast<uint32_t>(both[0]) & 0xffff) |
                                                   (static_cast<uint32_t>(both[1]) << 16));
      }
    }
    for (int j = 0; j < kBlock; ++j) longest = errors[j] > longest ? errors[j] : longest;
  }
  // Adding and taking away 1.5 * 2^52 rounds to the nearest whole number.
  constexpr double kMagic = 6755399441055744.0;
  for (int64_t t = 0; t < book.tables; ++t) {
    Mask8 outside{};
    for (int64_t k = t * padded + first * kBlock; k < t * padded + last * kBlock; k += kBlock) {
      const Vec8D h = __builtin_convertvector(load8(book.h + k), Vec8D) * (scale * scale);
      outside |= h < -kLargestH;
      const Vec8D cut = h < kLargestH ? h : Vec8D{} + kLargestH;
      const Vec8I whole = __builtin_convertvector((cut + kMagic) - kMagic, Vec8I);
      std::memcpy(book.h_int + k, &whole, sizeof whole);
    }
    for (int j = 0; j < kBlock; ++j)
      if (outside[j]) return -1.0;
  }
  return std::sqrt(longest);
}

// Rounds the panel to pairs [D / 2][width]; a vector that is too long becomes zero.
void quantise_panel(Panel* panel, const Codebook& book) {
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, in the low bits.
  constexpr float kMagic = 12582912.0f;
  const int width = panel->width;
  const float longest = (kLongestVector / book.scale) * (kLongestVector / book.scale) * 0.9999f;
  for (int r = 0; r < width; r += kLanes) {
    // Of a NaN, nothing fits.
    const VecI fits = load(panel->norm + r) < splat(longest);
    std::memcpy(panel->fits + r, &fits, sizeof fits);
    const VecF scale = splat(book.scale);
    VecF error{};
    for (int64_t p = 0; p < pairs_of(book.dim); ++p) {
      VecI parts[2] = {};
      for (int64_t i = 0; i < 2 && 2 * p + i < book.dim; ++i) {
        const VecF scaled = load(panel->x + (2 * p + i) * width + r) * scale;
        const VecF value = fits ? scaled : VecF{};
        const VecF shifted = value + kMagic;
        const VecF left = value - (shifted - kMagic);
        error += left * left;
        std::memcpy(&parts[i], &shifted, sizeof shifted);
      }
      const VecI both = (parts[0] & 0xffff) | (parts[1] << 16);
      std::memcpy(panel->pairs + p * width + r, &both, sizeof both);
    }
    store(panel->pair_error + r, error);
  }
}

// As scan_short and scan_long, in integers.
template <int R>
struct RunningInt {
  VecI best[R], second[R], block[R];

  inline void take(int r, VecI least, int32_t b) {
    second[r] = minimum(second[r], maximum(best[r], least));
    block[r] = least < best[r] ? VecI{} + b : block[r];
    best[r] = minimum(best[r], least);
  }
};

inline VecI load_int(const int32_t* p) {
  VecI v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store_int(int32_t* p, VecI v) { std::memcpy(p, &v, sizeof v); }

template <int R, typename Scores>
inline void scan_pairs_with(Panel* panel, int64_t first, int64_t last, const Scores& scores) {
  RunningInt<R> running;
  for (int r = 0; r < R; ++r) {
    running.best[r] = load_int(panel->best_int + r * kLanes);
    running.second[r] = load_int(panel->second_int + r * kLanes);
    running.block[r] = load_int(panel->block + r * kLanes);
  }
  for (int64_t b = first; b < last; ++b) {
    VecI least[R];
    scores(b, least);
    for (int r = 0; r < R; ++r) running.take(r, least[r], static_cast<int32_t>(b));
  }
  for (int r = 0; r < R; ++r) {
    store_int(panel->best_int + r * kLanes, running.best[r]);
    store_int(panel->second_int + r * kLanes, running.second[r]);
    store_int(panel->block + r * kLanes, running.block[r]);
  }
}

template <int R, int P>
void scan_pairs_short(Panel* panel, const Codebook& book, const int32_t* h, int64_t first, int64_t last) {
  VecI x[R][P];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) x[r][p] = load_int(panel->pairs + p * (R * kLanes) + r * kLanes);
  const int32_t* pairs = book.pairs;
  scan_pairs_with<R>(panel, first, last, [&](int64_t b, VecI* least) {
    const int32_t* c = pairs + b * P * kBlock;
    const int32_t* hb = h + b * kBlock;
#pragma GCC unroll 8
    for (int j = 0; j < kBlock; ++j) {
      VecI score[R];
      for (int r = 0; r < R; ++r) score[r] = VecI{} + hb[j];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const VecI value = VecI{} + c[p * kBlock + j];
        for (int r = 0; r < R; ++r) score[r] = add_products(score[r], x[r][p], value);
      }
      for (int r = 0; r < R; ++r) least[r] = j == 0 ? score[r] : minimum(least[r], score[r]);
    }
  });
}

template <int R>
void scan_pairs_long(Panel* panel, const Codebook& book, const int32_t* h, int64_t first, int64_t last) {
  constexpr int kStride = R * kLanes;
  const int64_t count = pairs_of(book.dim);
  const int32_t* pairs = book.pairs;
  const int32_t* lanes = panel->pairs;
  scan_pairs_with<R>(panel, first, last, [&](int64_t b, VecI* least) {
    const int32_t* c = pairs + b * count * kBlock;
    VecI sum[kBlock][R];
#pragma GCC unroll 8
    for (int j = 0; j < kBlock; ++j)
      for (int r = 0; r < R; ++r) sum[j][r] = VecI{} + h[b * kBlock + j];
    for (int64_t p = 0; p < count; ++p) {
      VecI x[R];
      for (int r = 0; r < R; ++r) x[r] = load_int(lanes + p * kStride + r * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < kBlock; ++j) {
        const VecI value = VecI{} + c[p * kBlock + j];
        for (int r = 0; r < R; ++r) sum[j][r] = add_products(sum[j][r], x[r], value);
      }
    }
    for (int r = 0; r < R; ++r) {
      least[r] = sum[0][r];
      for (int j = 1; j < kBlock; ++j) least[r] = minimum(least[r], sum[j][r]);
    }
  });
}

template <int R>
void scan_pairs_rows(Panel* panel, const Codebook& book, const int32_t* h, int64_t first, int64_t last) {
  switch (pairs_of(book.dim)) {
    case 2: return scan_pairs_short<R, 2>(panel, book, h, first, last);
    case 3: return scan_pairs_short<R, 3>(panel, book, h, first, last);
    case 4: return scan_pairs_short<R, 4>(panel, book, h, first, last);
    default: return scan_pairs_long<R>(panel, book, h, first, last);
  }
}

void scan_pairs(Panel* panel, const Codebook& book, int64_t first, int64_t last) {
  const int32_t* h = book.h_int + panel->table * book.padded_size();
  switch (panel->width / kLanes) {
    case 1: return scan_pairs_rows<1>(panel, book, h, first, last);
    case 2: return scan_pairs_rows<2>(panel, book, h, first, last);
    default: return scan_pairs_rows<kRows>(panel, book, h, first, last);
  }
}

// As `judge`, of integer scores: threshold_int and decided.
void judge_pairs(Panel* panel, const Codebook& book) {
  const float radius = static_cast<float>(kLongestCodeword) * 1.001f;
  // Of the subtraction of the mean and of the scaling, 2^-24 of up to 2^15 each, of either side. It
  // also has to hold what float32 made of h and of the codewords before they were rounded.
  const float rounding = 0.005f * std::sqrt(static_cast<float>(book.dim));
  for (int r = 0; r < panel->width; ++r) {
    const float length = 1.001f * std::sqrt(panel->norm[r]) * book.scale + rounding;
    const float error = 1.001f * std::sqrt(panel->pair_error[r]) + rounding;
    const float bound = 1.001f * (error * radius + (length + error) * book.pair_error) + 2.0f;
    const bool fits = panel->fits[r] && panel->best_int[r] < kTrusted;
    const int32_t threshold = fits ? panel->best_int[r] + static_cast<int32_t>(2.0f * bound) + 1 : 0;
    panel->threshold_int[r] = threshold;
    panel->decided[r] = !fits ? 0 : panel->second_int[r] > threshold ? 2 : 1;
  }
}

// Which of the eight codewords of a block score at most `threshold`; x: the vector's column.
inline unsigned pair_candidates(const int32_t* x, int64_t width, int64_t pairs, const int32_t* block,
                                const int32_t* h, int32_t threshold) {
  Vec8I total;
  std::memcpy(&total, h, sizeof total);
  for (int64_t p = 0; p < pairs; ++p) {
    Vec8I c;
    std::memcpy(&c, block + p * kBlock, sizeof c);
    total = add_products(total, Vec8I{} + x[p * width], c);
  }
  return lanes_at_most(total, threshold);
}

}  // namespace
}  // namespace vqcodec
