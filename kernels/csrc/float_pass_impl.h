// The first pass in float32: panels of vectors, packed, and the running minimum over the codebook.

namespace vqcodec {
namespace {

constexpr int kWidth = kRows * kLanes;  // vectors in a panel

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

}  // namespace
}  // namespace vqcodec
