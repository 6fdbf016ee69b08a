// Choosing the best of many on the device: keys that order like numbers, and the order of results.
#pragma once

#include "cuda/numbers.h"

namespace finescope::cuda {

// Unsigned keys in the order of the numbers. A NaN has no place in it; callers keep NaN out.
__host__ __device__ inline uint32_t key_of(float x) {
  const uint32_t bits = float_to_bits(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__host__ __device__ inline float of_key(uint32_t key) {
  return bits_to_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The order of results: score descending, then id ascending.
__host__ __device__ inline bool better(double a_score, int32_t a_id, double b_score, int32_t b_id) {
  return a_score > b_score || (a_score == b_score && a_id < b_id);
}

// Sorts n hits by that order; all threads of the block call. A bitonic network in the form in which every
// exchange moves the better hit to the lower place: then n need not be a power of two, since the hits that
// are missing at the end would be the worst, and would stay there. `score` and `id` may lie in shared or in
// global memory.
__device__ inline void sort_hits(double* score, int32_t* id, int64_t n) {
  const auto exchange = [&](int64_t low, int64_t high) {
    if (high >= n || !better(score[high], id[high], score[low], id[low])) return;
    const double s = score[low];
    const int32_t i = id[low];
    score[low] = score[high], id[low] = id[high];
    score[high] = s, id[high] = i;
  };
  for (int64_t size = 2; size < 2 * n; size *= 2) {
    // Two sorted runs of size / 2 become one: first against its mirror image, then ever closer neighbours.
    for (int64_t t = threadIdx.x; t < n; t += blockDim.x) {
      if ((t & size / 2) == 0) exchange(t, t ^ (size - 1));
    }
    __syncthreads();
    for (int64_t stride = size / 4; stride > 0; stride /= 2) {
      for (int64_t t = threadIdx.x; t < n; t += blockDim.x) {
        if ((t & stride) == 0) exchange(t, t + stride);
      }
      __syncthreads();
    }
  }
}

// The largest key that at least k of n reach; `key(i)` gives them. n >= k >= 1; all threads of the block
// call, of which there are at least 256. Eight bits at a time, by counting.
template <class Key>
__device__ uint32_t kth_key(const Key& key, int64_t n, int64_t k) {
  __shared__ uint32_t counts[256];
  __shared__ uint32_t chosen;
  __shared__ int64_t rank;
  uint32_t prefix = 0;
  int64_t left = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int t = threadIdx.x; t < 256; t += blockDim.x) counts[t] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const uint32_t value = key(i);
      // The bits above were chosen before; a shift by 32 is not defined.
      if (shift == 24 || value >> (shift + 8) == prefix >> (shift + 8))
        atomicAdd(&counts[value >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int64_t above = 0;
      int digit = 255;
      while (digit > 0 && above + counts[digit] < left) above += counts[digit--];
      chosen = static_cast<uint32_t>(digit);
      rank = left - above;
    }
    __syncthreads();
    prefix |= chosen << shift;
    left = rank;
    __syncthreads();
  }
  return prefix;
}

}  // namespace finescope::cuda
