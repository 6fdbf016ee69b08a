// Exact scores of pairs that the caller names.
#include <cstdio>

#include "cuda/launch.h"
#include "cuda/pair_dot.h"
#include "cuda/rows.h"

namespace finescope::cuda {
namespace {

[[noreturn]] __device__ __attribute__((noinline)) void refuse_id(int64_t id, int64_t row, int64_t j,
                                                                 int64_t N) {
  printf("finescope: pair_scores: ids holds %lld at [%lld, %lld], which is outside -1..%lld\n",
         static_cast<long long>(id), static_cast<long long>(row), static_cast<long long>(j),
         static_cast<long long>(N - 1));
  stop();
}

template <class X, class W>
__global__ void __launch_bounds__(kThreads, kBlocks / 2)
    pair_scores_kernel(Matrix x, Matrix w, const int64_t* ids, int64_t k, int64_t N, int64_t D, Metric metric,
                       bool aligned, double* out) {
  const int64_t row = blockIdx.x, step = gridDim.y * static_cast<int64_t>(kTeams);
  const X* left = static_cast<const X*>(x.data) + row * x.stride;
  for (int64_t base = blockIdx.y * static_cast<int64_t>(kTeams); base < k; base += step) {
    const int64_t j = base + threadIdx.x / kTeam;
    const int64_t id = ids[row * k + (j < k ? j : base)];
    if (id < -1 || id >= N) refuse_id(id, row, j, N);
    const W* right = static_cast<const W*>(w.data) + id * w.stride;
    double dot, w_norm, square, x_norm;
    // There may be no row at all to read for a -1.
    pair_dot<true, X>(left, right, id < 0 ? 0 : D, aligned, &dot, &w_norm);
    pair_dot<true, X>(left, left, D, aligned, &square, &x_norm);
    if (j >= k || threadIdx.x % kTeam != 0) continue;
    // Where a norm is not finite, neither need the score be: it is for the caller to see.
    const double norms = x_norm * w_norm;
    const double score = metric != Metric::cosine ? dot : norms == 0.0 ? 0.0 : dot / norms;
    out[row * k + j] = id < 0 || !isfinite(score) ? static_cast<double>(-INFINITY) : score;
  }
}

}  // namespace

void launch_pair_scores(const Matrix& x, const Matrix& w, const int64_t* ids, int64_t Q, int64_t k, int64_t N,
                        int64_t D, Metric metric, double* out, cudaStream_t stream) {
  if (Q * k == 0) return;
  const int64_t blocks = (k + kTeams - 1) / kTeams;
  const dim3 grid(static_cast<unsigned>(Q), static_cast<unsigned>(blocks < 1024 ? blocks : 1024));
  with_types(x.dtype, w.dtype, [&](auto* left, auto* right) {
    using X = std::remove_pointer_t<decltype(left)>;
    using W = std::remove_pointer_t<decltype(right)>;
    const bool wide = aligned<X, kOwn>(x.data, x.stride, D) && aligned<W, kOwn>(w.data, w.stride, D);
    launch("pair_scores", pair_scores_kernel<X, W>, grid, kThreads, 0, stream, x, w, ids, k, N, D, metric,
           wide, out);
  });
}

}  // namespace finescope::cuda
