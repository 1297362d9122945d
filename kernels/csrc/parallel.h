// Splits a range over threads of its own: no second OpenMP beside torch's.
#pragma once
#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace vqcodec {

// Calls work(begin, end) over [0, n) on up to `threads` threads; `grain` items are worth a thread.
template <typename Work>
void parallel_for(int64_t n, int64_t grain, int threads, const Work& work) {
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(threads, n / std::max<int64_t>(1, grain)));
  if (wanted == 1) {
    work(int64_t{0}, n);
    return;
  }
  std::vector<std::thread> pool;
  pool.reserve(wanted - 1);
  int64_t share = 1;
  try {
    for (; share < wanted; ++share)
      pool.emplace_back([&work, n, share, wanted] {
        work(n * share / wanted, n * (share + 1) / wanted);
      });
  } catch (const std::system_error&) {
    // No further thread to be had: this one does the shares that are left.
    work(n * share / wanted, n);
  }
  work(int64_t{0}, n / wanted);
  for (auto& thread : pool) thread.join();
}

}  // namespace vqcodec
