// The best of a list by (score descending, row ascending), sorted by one block.
#pragma once

#include "cuda/rows.h"
#include "cuda/sparse_search.h"

namespace finescope::cuda {

__host__ __device__ inline bool better(const SparseFound& a, const SparseFound& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
}

// Sorts items[0..n), best first. A bitonic network whose exchanges all put the better one first: what lies
// past the end counts as worst, and so never moves.
__device__ inline void sort_best(SparseFound* items, int64_t n) {
  int64_t whole = 1;
  while (whole < n) whole *= 2;
  for (int64_t size = 2; size <= whole; size *= 2) {
    for (int64_t stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      // The first step of a merge mirrors the second half.
      const int64_t flip = stride == size / 2 ? size - 1 : stride;
      for (int64_t i = threadIdx.x; i < whole / 2; i += blockDim.x) {
        const int64_t low = i / stride * stride * 2 + i % stride, high = low ^ flip;
        if (high >= n) continue;
        const SparseFound a = items[low], b = items[high];
        if (better(b, a)) {
          items[low] = b;
          items[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace finescope::cuda
