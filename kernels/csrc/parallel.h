// Splits a range over threads of its own: no second OpenMP beside torch's.
#pragma once
#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace vqcodec {

// Calls work(begin, end) over [0, n) on up to `threads` threads; `grain` items are worth a thread.
// The first exception of any share is thrown again, once all threads have ended.
template <typename Work>
void parallel_for(int64_t n, int64_t grain, int threads, const Work& work) {
  const int64_t worth = n / std::max<int64_t>(1, grain);
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(threads, worth));
  if (wanted == 1) {
    work(int64_t{0}, n);
    return;
  }
  std::exception_ptr failure;
  std::mutex mutex;
  const auto share_of = [&](int64_t first, int64_t last) {
    try {
      work(n * first / wanted, n * last / wanted);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(wanted - 1);
  int64_t share = 1;
  try {
    for (; share < wanted; ++share) pool.emplace_back(share_of, share, share + 1);
  } catch (const std::exception&) {
    // No further thread to be had: this one does the shares that are left.
  }
  if (share < wanted) share_of(share, wanted);
  share_of(0, 1);
  for (auto& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vqcodec
