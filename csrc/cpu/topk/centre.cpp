#include "cpu/topk/centre.h"

#include <algorithm>
#include <cmath>

#include "cpu/topk/internal.h"
#include "cpu/topk/quantize.h"

namespace finescope {
namespace {

// The mean of so many rows is off by a tenth of their spread, which costs half a percent of a bound.
constexpr int64_t kSampledRows = 128;
// The part of the rows' squared size that has to be common. Below that the bounds shrink by less than what a
// bias for each row of w costs.
constexpr double kWorth = 0.5;

// visit(row as float32, its squared norm) for a sample of rows; returns how many.
template <class Visit>
int64_t sample(const Matrix& m, int64_t n, int64_t d, Metric metric, const Visit& visit) {
  const TopkKernels& kernels = topk_kernels();
  const RowQuantizer q(ScreenKind::f32, metric, d);
  std::vector<float> row(static_cast<size_t>(q.padded));
  const int64_t most = std::min(n, kSampledRows);
  int64_t used = 0;
  for (int64_t i = 0; i < most; ++i) {
    const RowQuantizer::Loaded loaded = q.load(kernels, row_of(m, n * i / most), m.dtype, row.data());
    if (!loaded.finite || !loaded.tame) continue;
    visit(row.data(), kernels.squared_norm(row.data(), round_up(d, 16)));
    ++used;
  }
  return used;
}

double size_of(const float* row, int64_t d) {
  double squared = 0.0;
  for (int64_t i = 0; i < d; ++i) squared += double{row[i]} * row[i];
  return std::sqrt(squared) * (1.0 + 0x1p-20);
}

// The multiple of the mean that rows of x have in common.
double common_factor(const Matrix& x, int64_t n, int64_t d, Metric metric, const std::vector<double>& mean) {
  double dots = 0.0, squares = 0.0, length = 0.0;
  for (double v : mean) length += v * v;
  const int64_t used = sample(x, n, d, metric, [&](const float* row, double squared) {
    double dot;
    topk_kernels().dots_f32(mean.data(), &row, 1, round_up(d, 16), &dot);
    dots += dot;
    squares += squared;
  });
  if (used == 0 || !(length > 0)) return 0.0;
  const double factor = dots / static_cast<double>(used) / length;
  const bool worth = factor * factor * length * static_cast<double>(used) > kWorth * squares;
  return worth && std::fabs(factor) < 0x1p60 ? factor : 0.0;
}

}  // namespace

std::vector<float> common_mean(const Matrix& w, int64_t n, int64_t d, Metric metric) {
  std::vector<double> sum(static_cast<size_t>(d));
  double squares = 0.0, common = 0.0;
  const int64_t used = sample(w, n, d, metric, [&](const float* row, double squared) {
    for (int64_t i = 0; i < d; ++i) sum[i] += row[i];
    squares += squared;
  });
  if (used == 0) return {};
  std::vector<float> mean(static_cast<size_t>(round_up(d, 16)));
  for (int64_t i = 0; i < d; ++i) {
    mean[i] = static_cast<float>(sum[i] / static_cast<double>(used));
    common += double{mean[i]} * mean[i];
  }
  const bool worth =
      common * static_cast<double>(used) > kWorth * squares && common > double{kTameLow} * kTameLow;
  return worth ? mean : std::vector<float>{};
}

Centring::Centring(const Matrix& rows, int64_t n, int64_t d, Metric metric, const float* centre) {
  if (centre == nullptr) return;
  mean.assign(static_cast<size_t>(round_up(d, 16)), 0.0);
  std::copy(centre, centre + d, mean.begin());
  mean_size = size_of(centre, d);
  factor = common_factor(rows, n, d, metric, mean);
  if (factor == 0.0) return;
  x.assign(static_cast<size_t>(round_up(d, 16)), 0.0f);
  for (int64_t i = 0; i < d; ++i) x[i] = static_cast<float>(factor * mean[i]);
  x_size = size_of(x.data(), d);
}

}  // namespace finescope
