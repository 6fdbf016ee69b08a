// The arithmetic that decides what sparse search looks at. Plain C++.
//
// A query u = q / |q| is rounded to p (bfloat16), and |p - u| is measured. For a row c of n entries the
// screen's float32 sum s obeys
//   |s - <c, u>| <= |c| * (|p - u| + g(n)),   g(n) = (2.125 n + 64) * 2^-24,
// where g covers: rounding of the values to float32 and of at most n fused multiply-adds, the relative error
// of the float32 norm (a sum of n / 32 squares in each thread, then of 32), and that of this comparison. It
// is used where the sum of squares lies between 1e-24 and 1e36: nothing that matters under- or overflows.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/numbers.h"

namespace finescope::cuda {

inline constexpr float kLeastSquare = 1e-24f, kMostSquare = 1e36f;

__host__ __device__ inline float screen_rounding(int64_t n) {
  return (2.125f * static_cast<float>(n) + 64.0f) * 0x1p-24f;
}

// The nearest float32, or one just below.
__host__ __device__ inline float round_down(double x) {
  const float f = static_cast<float>(x);
  return static_cast<double>(f) > x ? f - std::fabs(f) * 0x1p-22f - 0x1p-148f : f;
}

// A row is a hit if sum >= norm * (slope - g(n)) + offset.
struct ScreenLine {
  float slope, offset;
};
__host__ __device__ inline ScreenLine screen_line(bool cosine, double threshold, double query_norm,
                                                  double error) {
  const double t = cosine || !(query_norm > 0.0) ? threshold : threshold / query_norm;
  // Nothing is known yet, or nothing can be told: everything is a hit.
  if (!(error < kInfinity) || !(t > -1e30)) return {0.0f, -static_cast<float>(kInfinity)};
  const double high = t < 1e30 ? t : 1e30;
  if (cosine) return {round_down(high - error), 0.0f};
  return {round_down(-error), round_down(high - std::fabs(high) * 0x1p-20)};
}

}  // namespace finescope::cuda
