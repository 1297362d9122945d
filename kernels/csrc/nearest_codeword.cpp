// Searches of all groups: packs codebooks, shares vectors out over threads.
#include "nearest_codeword.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "torch_threads.h"

namespace vqcodec {
namespace {

template <typename T>
struct Aligned {
  explicit Aligned(int64_t count)
      : data(static_cast<T*>(::operator new(sizeof(T) * std::max<int64_t>(1, count), std::align_val_t{64}))) {}
  ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* const data;
};

// Memory for some groups' codebooks, packed.
class PackedCodebooks {
 public:
  PackedCodebooks(const SearchRequest& request, const SearchKernels& kernels, int64_t count)
      : request_(request),
        kernels_(kernels),
        shape_(shape_of(request)),
        split_size_(kernels.split_size(request.dim, shape_.padded_size())),
        pairs_size_(split_size_ ? 0 : kernels.pairs_size(request.dim, shape_.blocks())),
        books_(count, shape_),
        mean_(count * request.dim),
        norms_(count * shape_.blocks() * kBlock),
        packed_(count * shape_.blocks() * kBlock * request.dim),
        h_(count * request.tables * shape_.padded_size()),
        h_int_(pairs_size_ ? count * request.tables * shape_.padded_size() : 0),
        pairs_(count * pairs_size_),
        split_(count * split_size_) {}

  // Packs groups first, first + 1, ...
  void pack(int64_t first, int threads) {
    const int64_t count = static_cast<int64_t>(books_.size()), dim = request_.dim, tables = request_.tables;
    const int64_t blocks = shape_.blocks(), h_size = tables * shape_.padded_size();
    for (int64_t i = 0; i < count; ++i) {
      Codebook& book = books_[i] = shape_;
      book.codewords = request_.codewords + (first + i) * shape_.size * dim;
      book.bias = request_.bias ? request_.bias + (first + i) * tables * shape_.size : nullptr;
      book.mean = mean_.data + i * dim;
      book.norms = norms_.data + i * blocks * kBlock;
      book.packed = packed_.data + i * blocks * kBlock * dim;
      book.h = h_.data + i * h_size;
      book.h_int = pairs_size_ ? h_int_.data + i * h_size : nullptr;
      book.pairs = pairs_size_ ? pairs_.data + i * pairs_size_ : nullptr;
      book.split = split_size_ ? split_.data + i * split_size_ : nullptr;
    }
    // Rounded up, so that they are bounds.
    const auto raise = [](float* bound, double value) {
      *bound = std::max(*bound, static_cast<float>(value * (1 + 1e-6)));
    };
    const int64_t cost = kBlock * (dim + tables);
    std::mutex mutex;
    share_out(count, dim, shape_.size, threads,
              [&](int64_t i, int64_t from, int64_t to) { kernels_.find_mean(books_[i], from, to); });
    share_out(count, blocks, cost, threads, [&](int64_t i, int64_t from, int64_t to) {
      const Extent extent = kernels_.pack_blocks(books_[i], from, to);
      const std::lock_guard<std::mutex> lock(mutex);
      raise(&books_[i].radius, extent.radius);
      raise(&books_[i].split_low, extent.split_low);
      raise(&books_[i].split_error, extent.split_error);
      books_[i].in_range &= extent.in_range;
    });
    if (!pairs_size_) return;
    for (Codebook& book : books_)
      if (book.in_range && book.radius > 1e-12f && book.radius < 1e12f)
        book.scale = static_cast<float>(kLongestCodeword / book.radius);
    std::vector<char> unfit(count, 0);
    share_out(count, blocks, cost, threads, [&](int64_t i, int64_t from, int64_t to) {
      if (books_[i].scale == 0.0f) return;
      const double error = kernels_.quantise_blocks(books_[i], from, to);
      const std::lock_guard<std::mutex> lock(mutex);
      unfit[i] |= error < 0.0;
      raise(&books_[i].pair_error, error);
    });
    for (int64_t i = 0; i < count; ++i)
      if (unfit[i]) books_[i].scale = 0.0f;
  }

  const Codebook& operator[](int64_t i) const { return books_[i]; }

  // Calls work(i, from, to) for items [from, to) of [0, size) of each of `count` codebooks.
  template <typename Work>
  static void share_out(int64_t count, int64_t size, int64_t cost, int threads, const Work& work) {
    parallel_for_in_torch(count * size, 1 + (int64_t{1} << 18) / cost, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin / size; i * size < end; ++i)
        work(i, std::max<int64_t>(0, begin - i * size), std::min(size, end - i * size));
    });
  }

 private:
  static Codebook shape_of(const SearchRequest& request) {
    Codebook book{};
    book.size = request.size;
    book.dim = request.dim;
    book.tables = request.tables;
    book.in_range = true;
    return book;
  }

  const SearchRequest& request_;
  const SearchKernels& kernels_;
  const Codebook shape_;
  const int64_t split_size_, pairs_size_;
  std::vector<Codebook> books_;
  const Aligned<float> mean_;
  const Aligned<double> norms_;
  const Aligned<float> packed_, h_;
  const Aligned<int32_t> h_int_, pairs_;
  const Aligned<uint16_t> split_;
};

template <typename T>
bool copy_rows(const TableRows& rows, int64_t group, int64_t from, int64_t to, int64_t tables, int32_t* out) {
  const T* values = static_cast<const T*>(rows.data) + group * rows.group_stride;
  bool inside = true;
  for (int64_t i = from; i < to; ++i) {
    const T value = values[i * rows.stride];
    inside &= value >= 0 && static_cast<uint64_t>(value) < static_cast<uint64_t>(tables);
    out[i - from] = static_cast<int32_t>(value);
  }
  return inside;
}

// Rows [from, to) of a group to out[0], ... as int32; whether all lie in [0, tables).
bool read_rows(const TableRows& rows, int64_t group, int64_t from, int64_t to, int64_t tables, int32_t* out) {
  switch (rows.type) {
    case Integer::kInt8: return copy_rows<int8_t>(rows, group, from, to, tables, out);
    case Integer::kInt16: return copy_rows<int16_t>(rows, group, from, to, tables, out);
    case Integer::kInt32: return copy_rows<int32_t>(rows, group, from, to, tables, out);
    case Integer::kInt64: return copy_rows<int64_t>(rows, group, from, to, tables, out);
    case Integer::kUint8: return copy_rows<uint8_t>(rows, group, from, to, tables, out);
    case Integer::kUint16: return copy_rows<uint16_t>(rows, group, from, to, tables, out);
    case Integer::kUint32: return copy_rows<uint32_t>(rows, group, from, to, tables, out);
    default: return copy_rows<uint64_t>(rows, group, from, to, tables, out);
  }
}

}  // namespace

int64_t search_groups(const SearchRequest& request, int threads) {
  if (request.groups == 0 || request.count == 0) return 0;
  const SearchKernels& kernels = active_kernels()->search;
  const int64_t n = request.count, item = request.type == Scalar::kFloat32 ? 4 : 2;
  const int64_t cost = 1 + request.size * (request.dim + 2) / 16;
  std::atomic<int64_t> rescored{0};
  std::atomic<bool> inside{true};

  struct Scratch {
    Aligned<char> workspace;
    std::vector<int32_t> rows;
  };
  const auto search = [&](int64_t group, const Codebook& book, int64_t from, int64_t to, Scratch* scratch) {
    Vectors x{static_cast<const char*>(request.vectors) + group * request.strides[0] * item,
              request.type, request.strides[1], request.strides[2], request.dim, nullptr};
    if (request.rows.data) {
      scratch->rows.resize(to - from);
      if (!read_rows(request.rows, group, from, to, request.tables, scratch->rows.data())) {
        inside = false;
        return;
      }
      x.table = scratch->rows.data();
    }
    Result result{request.index + group * n, request.distance ? request.distance + group * n : nullptr, 0};
    kernels.search(x, book, from, to, scratch->workspace.data, &result);
    rescored += result.rescored;
  };
  const auto make_scratch = [&] {
    return Scratch{Aligned<char>(kernels.workspace_bytes(request.dim, request.tables)), {}};
  };
  if (request.groups >= 4 * int64_t{threads}) {
    // Whole groups to a thread: a packed codebook stays in its cache.
    parallel_for_in_torch(request.groups, 1 + (int64_t{1} << 18) / (cost * n), threads, [&](int64_t begin, int64_t end) {
      Scratch scratch = make_scratch();
      PackedCodebooks books(request, kernels, 1);
      for (int64_t group = begin; group < end; ++group) {
        books.pack(group, 1);
        search(group, books[0], 0, n, &scratch);
      }
    });
  } else {
    PackedCodebooks books(request, kernels, request.groups);
    books.pack(0, threads);
    PackedCodebooks::share_out(request.groups, n, cost, threads, [&](int64_t group, int64_t from, int64_t to) {
      Scratch scratch = make_scratch();
      search(group, books[group], from, to, &scratch);
    });
  }
  if (!inside)
    throw std::invalid_argument("bias_table must lie in [0, " + std::to_string(request.tables) + ")");
  return rescored;
}

}  // namespace vqcodec
