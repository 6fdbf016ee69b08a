// The arithmetic that decides what sparse search looks at. Plain C++, so that the host can plan with it and
// test it.
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

// --- the order in which tiles of rows are visited

// A multiplier without a common divisor with `tiles`, so that i -> i * multiplier % tiles meets every tile
// once, and no run of it stays in one place. Below 2^20: the product fits 64 bits.
inline int64_t visiting_step(int64_t tiles) {
  const auto divisor = [](int64_t a, int64_t b) {
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  };
  int64_t step = 640007;
  while (divisor(step, tiles) != 1) ++step;
  return step;
}

// Rows of the next slab, if `seen` rows are behind: `spare` of them may be better than the k-th best so far.
// Of as many rows as were seen, k are expected to be; how many more it may well be follows from how the k-th
// best of a sample varies, and from neighbours' being alike. The first slab is all stored, and fits.
inline int64_t next_slab(int64_t seen, int64_t k, int64_t spare) {
  const double wanted = static_cast<double>(k), most = 0x1p60;
  const double grown =
      static_cast<double>(seen) * static_cast<double>(spare) / (wanted + 12.0 * std::sqrt(wanted) + 60.0);
  return grown < static_cast<double>(spare) ? spare : static_cast<int64_t>(grown < most ? grown : most);
}

}  // namespace finescope::cuda
