// The dot of a row of x and a row of w in the fixed order, and the score that follows from it.
#pragma once

#include "cuda/team_dot.h"
#include "cuda/topk.h"

namespace finescope::cuda {

// Blocks of the kernels that use it, and the teams in one.
inline constexpr int kThreads = 256;
inline constexpr int kTeams = kThreads / kTeam;
// Blocks that a multiprocessor holds at least. Left to itself, the compiler spills registers to hold more.
inline constexpr int kBlocks = 4;

// The score from the fixed-order dot, as on the CPU.
__device__ inline double exact_score(Metric metric, double dot, double bias, double x_norm, double w_norm) {
  if (metric == Metric::encode) return dot + bias;
  if (metric == Metric::ip) return dot;
  const double norms = x_norm * w_norm;
  return norms > 0.0 ? dot / norms : 0.0;
}

// What a thread adds to the dot of x and a row of w, and (if kNorm) of the latter with itself.
template <bool kAligned, bool kNorm, class X, class Stored, class W>
__device__ inline void add_own(const Stored* x, const W* w, int64_t D, double (&sum)[kOwn],
                               double (&square)[kOwn]) {
  constexpr bool kExact = sizeof(X) < 8 && sizeof(W) < 8, kExactSquare = sizeof(W) < 8;
  // Loads that are on their way at a time, as many as registers allow.
  [[maybe_unused]] constexpr int kAhead = !kAligned ? 1 : sizeof(Stored) == 8 ? 4 : 2;
#pragma unroll kAhead
  for (int64_t d = threadIdx.x % kTeam * kOwn; d < D; d += kLanes) {
    double left[kOwn], right[kOwn];
    load_own(w, d, D, kAligned, right);
    load_own(x, d, D, kAligned, left);
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      sum[o] = add_product<kExact>(sum[o], left[o], right[o]);
      if (kNorm) square[o] = add_product<kExactSquare>(square[o], right[o], right[o]);
    }
  }
}

// The dot of x and a row of w, and (if kNorm) the norm of the latter, by a team; valid in its first thread.
// Every thread of the warp calls, with rows of its own team. X says what x was before it was widened.
// Aligned: `aligned<T, kOwn>` holds for both rows.
template <bool kNorm, class X, class Stored, class W>
__device__ void pair_dot(const Stored* x, const W* w, int64_t D, bool aligned, double* dot, double* norm) {
  double sum[kOwn] = {}, square[kOwn] = {};
  if (aligned) {
    add_own<true, kNorm, X>(x, w, D, sum, square);
  } else {
    add_own<false, kNorm, X>(x, w, D, sum, square);
  }
  *dot = sum_team(sum);
  *norm = kNorm ? sqrt(sum_team(square)) : 0.0;
}

// body(X*, W*) with the element types of both operands.
template <class Body>
void with_types(DType x, DType w, const Body& body) {
  with_type(x, [&](auto* left) { with_type(w, [&](auto* right) { body(left, right); }); });
}

}  // namespace finescope::cuda
