// The dot of a row of x and a row of w in the fixed order, and the score that follows from it.
#pragma once

#include "cuda/numbers.h"
#include "cuda/topk.h"

namespace finescope::cuda {

// Blocks of the kernels that use it, and the half warps in one.
inline constexpr int kThreads = 256;
inline constexpr int kGroups = kThreads / kLanes;

// The score from the fixed-order dot, as on the CPU.
__device__ inline double exact_score(Metric metric, double dot, double bias, double x_norm, double w_norm) {
  if (metric == Metric::encode) return dot + bias;
  if (metric == Metric::ip) return dot;
  const double norms = x_norm * w_norm;
  return norms > 0.0 ? dot / norms : 0.0;
}

// The dot of x and a row of w, and (if kNorm) the norm of the latter, by a half warp; valid in its first
// lane. Every lane of the warp calls, with rows of its own half. X says what x was before it was widened.
template <bool kNorm, class X, class Stored, class W>
__device__ void pair_dot(const Stored* x, const W* w, int64_t D, double* dot, double* norm) {
  constexpr bool kExact = sizeof(X) < 8 && sizeof(W) < 8, kExactSquare = sizeof(W) < 8;
  const int lane = threadIdx.x % kLanes;
  double sum = 0.0, square = 0.0;
#pragma unroll 4
  for (int64_t d = lane; d < D; d += kLanes) {
    const double b = to_double(w[d]);
    sum = add_product<kExact>(sum, to_double(x[d]), b);
    if (kNorm) square = add_product<kExactSquare>(square, b, b);
  }
  *dot = sum_lanes(sum);
  *norm = kNorm ? sqrt(sum_lanes(square)) : 0.0;
}

// body(X*, W*) with the element types of both operands.
template <class Body>
void with_types(DType x, DType w, const Body& body) {
  with_type(x, [&](auto* left) { with_type(w, [&](auto* right) { body(left, right); }); });
}

}  // namespace finescope::cuda
