// Shares the blocks of samples out over threads, and adds up their divergences.
#include "gaussian_sample.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "torch_threads.h"

namespace vqcodec {
namespace {

// Fewer elements than this take less time than it takes to wake a thread.
constexpr int64_t kElementsWorthAThread = 1 << 15;

// Results this large are often fresh memory, whose first touch in pages of 4 KiB would take longer than
// the arithmetic: asks for large pages. Nothing depends on whether the system grants them.
void ask_for_large_pages(void* data, int64_t bytes) {
#ifdef __linux__
  constexpr int64_t kTwoLargePages = 4 << 20;
  constexpr uintptr_t kPage = 1 << 12;
  if (bytes < kTwoLargePages) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

template <typename Work>
void for_blocks(const GaussianRequest& request, int threads, const Work& work) {
  const int64_t blocks = sample_blocks(request.size), rows = rows_of_block(request.size);
  const int64_t total = blocks > 1 ? request.count * blocks : (request.count + rows - 1) / rows;
  const int64_t elements = std::max<int64_t>(1, std::min<int64_t>(kSampleBlock, rows * request.size));
  parallel_for_in_torch(total, kElementsWorthAThread / elements, threads, work);
}

}  // namespace

void gaussian_sample(const GaussianRequest& request, void* z, float* kl, int threads) {
  const KernelTable* kernels = active_kernels();
  const int64_t blocks = sample_blocks(request.size);
  std::vector<double> partial(kl && blocks > 1 ? request.count * blocks : 0);
  ask_for_large_pages(z, request.count * request.size * bytes_of(request.type));
  const GaussianSample out{z, kl, partial.empty() ? nullptr : partial.data()};
  for_blocks(request, threads, [&](int64_t begin, int64_t end) {
    kernels->gaussian.sample(request, out, begin, end);
  });
  if (partial.empty()) return;
  for (int64_t n = 0; n < request.count; ++n) {
    double sum = 0.0;
    for (int64_t b = 0; b < blocks; ++b) sum += partial[n * blocks + b];
    kl[n] = static_cast<float>(0.5 * sum);
  }
}

void gaussian_sample_backward(const GaussianRequest& request, const GaussianGradient& gradient, int threads) {
  const KernelTable* kernels = active_kernels();
  for (void* out : gradient.out)
    if (out) ask_for_large_pages(out, request.count * request.size * bytes_of(request.type));
  for_blocks(request, threads, [&](int64_t begin, int64_t end) {
    kernels->gaussian.differentiate(request, gradient, begin, end);
  });
}

}  // namespace vqcodec
