// Rows that have a large mean in common, as mean-pooled hidden states of language models have, whose cosines
// are all near 1. Every bound of a screen is proportional to the rows' size, and what tells them apart is
// then a small part of it. So the mean is taken out of both sides: with any vector μ, and ν = factor μ,
//
//   <x, w>  =  <x, μ>  +  <ν, w - μ>  +  <x - ν, w - μ>.
//
// The first term is one number for each x, by which its thresholds move; the second is a bias of w; only the
// third is screened. The first two are worked out in float64, and their error is part of the thresholds.
#pragma once

#include <vector>

#include "cpu/topk/topk.h"

namespace finescope {

// The μ for rows of w (cosine: divided by their norms), from a sample of them; [d], zeros up to a multiple of
// 16. Empty if they have so little in common that to take it out would not pay.
std::vector<float> common_mean(const Matrix& w, int64_t n, int64_t d, Metric metric);

inline void subtract(float* row, const float* other, int64_t d) {
  for (int64_t i = 0; i < d; ++i) row[i] -= other[i];
}

// What is taken out of the two sides of a problem.
struct Centring {
  std::vector<double> mean;              // μ, zeros up to a multiple of 16; empty: nothing is taken out
  std::vector<float> x;                  // ν in float32; empty: it is zero
  double factor = 0.0;                   // from a sample of x; 0 where it would not pay
  double mean_size = 0.0, x_size = 0.0;  // >= |μ|, |ν|

  // For rows x [n, d], and rows of w whose common mean is `centre` (null: they have none).
  Centring(const Matrix& rows, int64_t n, int64_t d, Metric metric, const float* centre);
  bool any() const { return !mean.empty(); }
};

}  // namespace finescope
