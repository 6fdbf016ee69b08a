// Work over torch's own threads: no second pool, and torch.set_num_threads counts.
#pragma once

#include <algorithm>

#include "bindings/tensors.h"
#include "cpu/subnormals.h"
#include "cpu/workers.h"

namespace finescope {

inline int num_threads() {
  return std::max(1, static_cast<int>(torch::stable::get_num_threads()));
}

// Run body(begin, end) over 0..n on torch's threads. Each thread gets at least `grain` of n.
template <class Body>
void parallel(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  torch::stable::parallel_for(0, n, std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t end) {
    const KeepSubnormals keep;
    body(begin, end);
  });
}

// Run body(begin, end) over the runs 0..n, of which run i holds the entries start[i]..start[i + 1], cut into equal
// numbers of entries plus runs: runs differ in length by orders of magnitude, and one without entries still costs
// the writing of its result. Each thread gets at least `grain` of both.
template <class Body>
void over_runs(const int64_t* start, int64_t n, int64_t grain, const Body& body) {
  const int64_t cost = start[n] + n;
  const int64_t chunks = std::clamp<int64_t>(cost / std::max<int64_t>(grain, 1), 1, num_threads());
  const auto boundary = [&](int64_t chunk) {
    if (chunk == chunks) return n;
    const int64_t target = cost / chunks * chunk;
    int64_t low = 0, high = n;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (start[middle] + middle < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  parallel(chunks, 1, [&](int64_t begin, int64_t end) { body(boundary(begin), boundary(end)); });
}

// The threads as engines take them.
inline Workers torch_workers() {
  const auto run = [](int threads, void (*body)(void*, int), void* context) {
    parallel(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
    });
  };
  return {num_threads(), run};
}

}  // namespace finescope
