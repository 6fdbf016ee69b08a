// The fixed-order dot by four threads: of its 16 lanes a thread holds four adjacent ones, so that it reads
// four adjacent elements at a time, and eight dots fit a warp.
#pragma once

#include "cuda/rows.h"

namespace finescope::cuda {

inline constexpr int kOwn = 4;               // lanes of a dot per thread
inline constexpr int kTeam = kLanes / kOwn;  // threads per dot

// Elements d..d+kOwn of a row as float64, zeros from D on. Aligned: `aligned<T, kOwn>` holds for the row.
template <class T>
__device__ inline void load_own(const T* row, int64_t d, int64_t D, bool aligned, double (&to)[kOwn]) {
  // As wide as a load can be; of float64 two.
  constexpr int kAtOnce = kOwn < kWide<T> ? kOwn : kWide<T>;
  if (aligned) {
#pragma unroll
    for (int first = 0; first < kOwn; first += kAtOnce) {
      Vector<T, kAtOnce> x{};
      if (d < D) x = *reinterpret_cast<const Vector<T, kAtOnce>*>(row + d + first);
#pragma unroll
      for (int o = 0; o < kAtOnce; ++o) to[first + o] = to_double(x.element[o]);
    }
  } else {
#pragma unroll
    for (int o = 0; o < kOwn; ++o) to[o] = d + o < D ? to_double(row[d + o]) : 0.0;
  }
}

// The 16 lanes of a team's dot, halved 8, 4, 2, 1. Valid in the first thread of each team; all 32 threads of
// the warp must call.
__device__ inline double sum_team(double (&lane)[kOwn]) {
  for (int half = kTeam / 2; half > 0; half /= 2) {
    for (int o = 0; o < kOwn; ++o) lane[o] = lane[o] + __shfl_down_sync(kWhole, lane[o], half, kTeam);
  }
  return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

}  // namespace finescope::cuda
