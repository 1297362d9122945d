// The search, written once over vectors of kLanes floats; included by the translation unit of each
// instruction set after it has defined `subtract_product`, `minimum`, `maximum`, `lanes_at_most`, the
// size of its tiles (kRows lane vectors by kCodes codewords) and its roundings a product-sum.
// Templates of the standard library are kept out: the linker might take a copy of one that was
// compiled for another instruction set.
#include "codebook_packing_impl.h"
#include "float_pass_impl.h"

namespace vqcodec {
namespace {

constexpr int64_t kPanelBytes = 1 << 18;
constexpr int64_t kCodebookBytes = 1 << 19;
constexpr int64_t kChunk = 8192;  // vectors sorted by table at a time
constexpr int64_t kFew = 4;       // vectors that are not worth a panel
constexpr int64_t kCachedBytes = 1 << 14;

// --- the first pass on this instruction set ---------------------------------------------------

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
unsigned pair_candidates(const int32_t*, int64_t, int64_t, const int32_t*, const int32_t*, int32_t) {
  return 0;
}
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

// Vectors for a further pass, those of one table together.
struct LeftOver {
  int64_t* rows;
  int32_t* tables;
  int64_t count;
};

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

  // All codewords that reach the threshold of the pass in integers, with a column of pairs.
  void settle_pairs(int64_t row, int64_t table, const int32_t* column, int64_t width,
                    int32_t threshold) const {
    const int32_t* h = book.h_int + table * book.padded_size();
    const int64_t pairs = pairs_of(book.dim);
    Verdict verdict = open(row, table);
    for (int64_t b = 0; b < book.blocks(); ++b) {
      unsigned found = pair_candidates(column, width, pairs, book.pairs + b * pairs * kBlock,
                                       h + b * kBlock, threshold);
      for (; found; found &= found - 1) verdict.hear(b * kBlock + __builtin_ctz(found));
    }
    close(row, verdict);
  }

  // Vectors that the integers leave undecided are listed; or settled here, if few will share a
  // panel and the codebook is in the first cache. Returns how many there were.
  int64_t finish_pairs(Panel* panel, LeftOver* left) const {
    const int32_t* h = book.h_int + panel->table * book.padded_size();
    const int64_t pairs = pairs_of(book.dim);
    const bool alone = x.table && book.blocks() * kBlock * pairs * 4 <= kCachedBytes;
    int64_t undecided = 0;
    judge_pairs(panel, book);
    for (int r = 0; r < panel->count; ++r) {
      const int64_t row = panel->rows[r], b = panel->block[r];
      const int32_t threshold = panel->threshold_int[r];
      if (panel->decided[r] == 2) {
        const unsigned found = pair_candidates(panel->pairs + r, panel->width, pairs,
                                               book.pairs + b * pairs * kBlock, h + b * kBlock, threshold);
        settle(row, panel->table, b, found);
      } else if (panel->decided[r] == 1 && alone) {
        settle_pairs(row, panel->table, panel->pairs + r, panel->width, threshold);
        ++undecided;
      } else {
        left->rows[left->count] = row;
        left->tables[left->count++] = static_cast<int32_t>(panel->table);
        ++undecided;
      }
    }
    return undecided;
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
  LeftOver left{};
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
    take(base, kChunk, &left.rows);
    take(base, kChunk, &left.tables);
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
  Workspace work(memory, book.dim, book.tables);
  LeftOver& left = work.left;
  const Search one{x, book, work.vector, work.centred, result};
  const int64_t dim = book.dim, at_once = panels_at_once(dim);
  const int64_t block_bytes = dim * kBlock * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kBlocks = kTile / kBlock;
  const int64_t fit = kCodebookBytes / (block_bytes * kBlocks);
  const int64_t step = kBlocks * (fit < 1 ? 1 : fit);
  [[maybe_unused]] const TileState tiles;
  bool in_pairs = book.scale > 0.0f;
  int64_t filled = 0, undecided = 0;

  auto flush = [&] {
    for (int64_t first = 0; first < book.blocks() && book.in_range; first += step) {
      const int64_t last = first + step < book.blocks() ? first + step : book.blocks();
      for (int64_t p = 0; p < filled; ++p)
        in_pairs ? scan_pairs(&work.panels[p], book, first, last) : scan(&work.panels[p], book, first, last);
    }
    for (int64_t p = 0; p < filled; ++p) {
      if (in_pairs)
        undecided += one.finish_pairs(&work.panels[p], &left);
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
    result->rescored += undecided;
    // Where 16 bits leave too many undecided, the rest of the vectors does without them.
    const bool go_on = in_pairs && undecided * 4 < count;
    in_pairs = false;
    for (int64_t from = 0, to; from < left.count; from = to) {
      const int32_t table = left.tables[from];
      for (to = from + 1; to < left.count && left.tables[to] == table;) ++to;
      if (to - from < kFew) {
        for (int64_t i = from; i < to; ++i) one.search_one(left.rows[i], table);
      } else {
        add(from, to, table, [&](int64_t i) { return left.rows[i]; });
      }
    }
    flush();
    in_pairs = go_on;
    left.count = 0;
    undecided = 0;
  }
}

const SearchKernels kSearchKernels = {find_mean,  pack_blocks,     pairs_size, quantise_blocks,
                                      split_size, workspace_bytes, search};

}  // namespace
}  // namespace vqcodec
