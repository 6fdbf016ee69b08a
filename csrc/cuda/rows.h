// What kernels over rows share: wide loads, weighted sums of rows, the numbering of tasks, and the way out
// when an index is not one.
#pragma once

#include <cstdio>

#include "cuda/launch.h"
#include "cuda/numbers.h"

namespace finescope::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kWhole = 0xffffffffu;

// V adjacent elements, read and written at once.
template <class T, int V>
struct __align__(sizeof(T) * V) Vector {
  T element[V];
};
template <class T>
struct Vector<T, 1> {
  T element[1];
};
// Elements in 16 bytes, the widest access of a thread.
template <class T>
inline constexpr int kWide = static_cast<int>(16 / sizeof(T));

// Whether all rows of `stride` elements from `data` on can be read as vectors of V.
template <class T, int V>
bool aligned(const void* data, int64_t stride, int64_t width) {
  return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * V) == 0 && stride % V == 0 && width % V == 0;
}

// Blocks for so many tasks, of which a block takes `per_block` at a time; kernels go on with a stride.
inline unsigned blocks_for(int64_t tasks, int64_t per_block) {
  const int64_t blocks = (tasks + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20));
}

// The first task of this thread (or warp), and the step to its next one.
__device__ inline int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t thread_stride() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}
__device__ inline int64_t first_warp() {
  return first_thread() / kWarp;
}
__device__ inline int64_t warp_stride() {
  return thread_stride() / kWarp;
}

// Ends the kernel, and with it what the device does for this process.
[[noreturn]] __device__ inline void stop() {
  __trap();
  __builtin_unreachable();
}

// Not inlined: what it takes to print would burden every kernel.
[[noreturn]] __device__ __attribute__((noinline)) inline void refuse_index(const char* op, int64_t index,
                                                                           int64_t b, int64_t j,
                                                                           int64_t limit) {
  printf("finescope: %s: indices holds %lld at [%lld, %lld], which is outside 0..%lld\n", op,
         static_cast<long long>(index), static_cast<long long>(b), static_cast<long long>(j),
         static_cast<long long>(limit - 1));
  stop();
}
__device__ inline void check_index(const char* op, int64_t index, int64_t b, int64_t j, int64_t limit) {
  if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(limit)) refuse_index(op, index, b, j, limit);
}

// A warp works on a strip of columns: thread `lane` holds columns first + (u * 32 + lane) * V + v.
template <class T, int V>
struct Strip {
  static constexpr int kParts = V > 1 ? 2 : 4;
  static constexpr int64_t kWidth = int64_t{kWarp} * V * kParts;
  using Acc = Accumulator<T>;

  Acc sum[kParts][V];

  __device__ void clear() {
    for (int u = 0; u < kParts; ++u) {
      for (int v = 0; v < V; ++v) sum[u][v] = 0;
    }
  }

  // Adds coefficient(i) * row(i) for i in begin..end, one after the other; `item(i, &coefficient)` is the
  // row. Products round by themselves. Several rows are on their way at a time.
  template <class Item>
  __device__ void add(int64_t begin, int64_t end, int64_t column, int64_t D, const Item& item) {
#pragma unroll 4
    for (int64_t i = begin; i < end; ++i) {
      Acc coefficient;
      const T* row = item(i, &coefficient) + column;
#pragma unroll
      for (int u = 0; u < kParts; ++u) {
        if (column + u * kWarp * V >= D) continue;
        const Vector<T, V> x = *reinterpret_cast<const Vector<T, V>*>(row + u * kWarp * V);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[u][v] += coefficient * to_accumulator(x.element[v]);
      }
    }
  }

  // Calls body(column, sums) for each vector of columns that exists.
  template <class Body>
  __device__ void each(int64_t column, int64_t D, const Body& body) {
#pragma unroll
    for (int u = 0; u < kParts; ++u) {
      if (column + u * kWarp * V < D) body(column + u * kWarp * V, sum[u]);
    }
  }
};

template <class T, int V>
__device__ inline void store_vector(const Accumulator<T>* from, T* to) {
  Vector<T, V> x;
#pragma unroll
  for (int v = 0; v < V; ++v) store(from[v], &x.element[v]);
  *reinterpret_cast<Vector<T, V>*>(to) = x;
}

// Strips of a row; a row of no columns has one, since there may be more to do for it than its columns.
template <class T, int V>
__host__ __device__ inline int64_t strips(int64_t D) {
  return D > 0 ? (D + Strip<T, V>::kWidth - 1) / Strip<T, V>::kWidth : 1;
}

}  // namespace finescope::cuda
