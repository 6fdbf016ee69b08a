// The choice of a screen by what it would let through, counted on a sample.
//
// int8 is twice as fast as 16 bits, but its error is a larger part of the spread of the scores, the wider the
// rows are, the more so the heavier their tails; and every pair that it cannot rule out is looked at again.
#include <algorithm>
#include <atomic>

#include "cpu/topk/centre.h"
#include "cpu/topk/internal.h"
#include "cpu/topk/quantize.h"

namespace finescope {
namespace {

constexpr int64_t kSampledX = 16, kSampledW = 1024;
constexpr int64_t kTogether = 4;  // rows of x

// Rows of a sample as the int8 screen sees them.
struct Sampled {
  std::vector<float> row;  // as float32, ready to be quantized
  std::vector<const float*> pointer;
  std::vector<float> norm, err, size;
  std::vector<double> dot;

  Sampled(const RowQuantizer& q, const Matrix& m, int64_t of, int64_t n, const Workers& workers) {
    const TopkKernels& kernels = topk_kernels();
    const WholeNumbers& form = kernels.whole[static_cast<int>(q.kind)];
    const size_t count = static_cast<size_t>(n);
    row.resize(static_cast<size_t>(n * q.padded));
    pointer.resize(count), norm.resize(count), err.resize(count), size.resize(count), dot.resize(count);
    std::vector<std::vector<uint32_t>> scratch(static_cast<size_t>(workers.threads));
    for_each(workers, n, [&](int64_t i, int worker) {
      std::vector<uint32_t>& units = scratch[worker];
      units.resize(static_cast<size_t>(q.padded));
      float* at = row.data() + i * q.padded;
      const RowQuantizer::Loaded loaded = q.load(kernels, row_of(m, of * i / n), m.dtype, at);
      const float step = form.step(at, q.padded);
      const float scale = step > 0 ? step : 1.0f;
      const RowQuantizer::Row r =
          q.quantize(kernels, at, scale, 1.0f / scale, loaded.lost, form.offset, units.data());
      pointer[i] = at, norm[i] = r.norm, err[i] = r.err, size[i] = r.size, dot[i] = loaded.dot;
    });
  }
};

}  // namespace

Survivors survivors(const PairSample& s, bool above, const Workers& workers) {
  const TopkKernels& kernels = topk_kernels();
  RowQuantizer q(ScreenKind::int8, s.metric, s.d), of_x = q;
  const Centring centring(s.x, s.B, s.d, s.metric, s.centre);
  if (centring.any()) q.centre = s.centre, q.mean = centring.mean.data(), of_x.mean = centring.mean.data();
  if (!centring.x.empty()) of_x.centre = centring.x.data();
  const int64_t nx = std::min(s.B, kSampledX), nw = std::clamp<int64_t>(s.N / 16, 1, kSampledW);
  const Sampled x(of_x, s.x, s.B, nx, workers), w(q, s.w, s.N, nw, workers);
  const int64_t stride = round_up(nw, 3);
  const int64_t best = std::clamp<int64_t>(static_cast<int64_t>(s.share * static_cast<double>(nw)), 1, nw);
  std::atomic<int64_t> found{0}, wanted{0};
  for_each(workers, (nx + kTogether - 1) / kTogether, [&](int64_t task, int) {
    const int64_t first = task * kTogether, n = std::min(kTogether, nx - first);
    std::vector<float> score(static_cast<size_t>(n * stride)), order(static_cast<size_t>(nw));
    kernels.block_dots(x.pointer.data() + first, n, w.pointer.data(), nw, q.padded, score.data(), stride);
    for (int64_t i = first; i < first + n; ++i) {
      float* row = score.data() + (i - first) * stride;
      for (int64_t j = 0; s.bias != nullptr && j < nw; ++j)
        row[j] += static_cast<float>(s.bias[s.N * j / nw]);
      // <ν, w - μ>, and <x, μ>, which is the same for all.
      for (int64_t j = 0; j < nw; ++j) row[j] += static_cast<float>(centring.factor * w.dot[j]);
      float least = static_cast<float>(-x.dot[i]);
      if (!above) {
        std::copy(row, row + nw, order.begin());
        std::nth_element(order.begin(), order.begin() + (best - 1), order.end(), std::greater<float>());
        least = order[static_cast<size_t>(best - 1)];
      }
      int64_t over = 0, of_them = 0;
      for (int64_t j = 0; j < nw; ++j) {
        over += row[j] + x.norm[i] * w.err[j] + x.err[i] * w.size[j] >= least;
        of_them += row[j] > least;
      }
      found += over, wanted += above ? of_them : best;
    }
  });
  const double pairs = static_cast<double>(nx * nw);
  return {static_cast<double>(found) / pairs, static_cast<double>(wanted) / pairs};
}

bool screen_available(ScreenKind kind) {
  return topk_kernels().screen[static_cast<int>(kind)] != nullptr;
}

ScreenKind best_screen(ScreenChoice choice, const PairSample& sample, const Workers& workers) {
  const bool bytes = screen_available(ScreenKind::int8);
  const ScreenKind preferred = topk_kernels().wide;
  const ScreenKind wide = screen_available(preferred)          ? preferred
                          : screen_available(ScreenKind::bf16) ? ScreenKind::bf16
                                                               : ScreenKind::f32;
  if (choice == ScreenChoice::bf16) return wide;
  if (choice == ScreenChoice::int8) return bytes ? ScreenKind::int8 : ScreenKind::f32;
  if (choice != ScreenChoice::automatic) return ScreenKind::f32;
  if (!bytes) return wide;
  if (wide == ScreenKind::f32 || sample.B == 0 || sample.N == 0) return ScreenKind::int8;
  const Survivors passed = survivors(sample, false, workers);
  return passed.screened - passed.wanted > topk_kernels().most_survivors ? wide : ScreenKind::int8;
}

}  // namespace finescope
