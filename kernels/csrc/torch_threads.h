// Splits a range over the threads of the OpenMP that torch has loaded; over our own without it.
//
// Between two operations of torch, its threads spin for some milliseconds on the processors that new
// threads would need, which then start when they are no longer wanted. What runs among operations of
// torch does better to join them. Only for what runs after torch has been loaded, and, as torch
// itself, not in a process forked from one that has used several threads.
#pragma once
#if defined(__linux__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "parallel.h"

namespace vqcodec {

// Runs function(data) on each of so many threads, as `#pragma omp parallel` does. Both GNU's and
// LLVM's OpenMP have it.
using RunTeam = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

inline RunTeam torch_team() {
#if defined(__linux__) || defined(__APPLE__)
  static const auto found = reinterpret_cast<RunTeam>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#else
  return nullptr;
#endif
}

// Calls work(begin, end) over [0, n) on up to `threads` threads; `grain` items are worth a thread. The
// first exception of any share is thrown again, once all threads have ended.
template <typename Work>
void parallel_for_in_torch(int64_t n, int64_t grain, int threads, const Work& work) {
  const int64_t worth = n / std::max<int64_t>(1, grain);
  if (worth < 2 || threads < 2) return work(int64_t{0}, n);
  const RunTeam run_team = torch_team();
  if (!run_team) return parallel_for(n, grain, threads, work);
  // Several shares for each, since a processor may have other work to do.
  struct Shares {
    const Work& work;
    int64_t n, count;
    std::atomic<int64_t> next{0};
    std::mutex mutex{};
    std::exception_ptr failure{};
  } shares{work, n, std::min<int64_t>(worth, int64_t{4} * threads)};
  const auto member = [](void* data) {
    Shares& s = *static_cast<Shares*>(data);
    for (int64_t i; (i = s.next++) < s.count;) try {
        s.work(s.n * i / s.count, s.n * (i + 1) / s.count);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(s.mutex);
        if (!s.failure) s.failure = std::current_exception();
      }
  };
  run_team(member, &shares, static_cast<unsigned>(std::min<int64_t>(threads, worth)), 0);
  if (shares.failure) std::rethrow_exception(shares.failure);
}

}  // namespace vqcodec
