// sparse_matmul: a warp for each sparse row and strip of the panel's columns.
#include "cuda/rows.h"
#include "cuda/sparse.h"
#include "cuda/sparse_rows.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <int V>
__global__ void __launch_bounds__(kThreads) matmul_kernel(SparseMatmulArgs a, int64_t entries) {
  using S = Strip<double, V>;
  const int64_t per_row = strips<double, V>(a.C);
  const AnyEntries stored{a.codes};
  for (int64_t task = first_warp(); task < a.codes.rows * per_row; task += warp_stride()) {
    const int64_t row = task / per_row;
    const int64_t column = task % per_row * S::kWidth + threadIdx.x % kWarp * V;
    const int64_t begin = a.codes.indptr[row], end = a.codes.indptr[row + 1];
    check_row('c', a.codes, row, begin, end, entries);
    for (int64_t i = begin + threadIdx.x % kWarp; i < end; i += kWarp) {
      in_range('c', stored.stored(i), row, a.codes.latents);
    }
    __syncwarp();
    S strip;
    strip.clear();
    strip.add(begin, end, column, a.C, [&](int64_t i, double* coefficient) {
      *coefficient = stored.value(i);
      return a.panel + stored.latent(i) * a.stride;
    });
    double* out = a.out + row * a.C;
    strip.each(column, a.C, [&](int64_t c, double* sum) {
      for (int v = 0; v < V; ++v) sum[v] = sum[v] == sum[v] ? sum[v] : kNaN;
      store_vector<double, V>(sum, out + c);
    });
  }
}

}  // namespace

void launch_sparse_matmul(const SparseMatmulArgs& a, int64_t entries, cudaStream_t stream) {
  constexpr int V = kWide<double>;
  const bool wide = aligned<double, V>(a.panel, a.stride, a.C) && aligned<double, V>(a.out, a.C, a.C);
  const int64_t tasks = a.codes.rows * (wide ? strips<double, V>(a.C) : strips<double, 1>(a.C));
  launch("sparse_matmul", wide ? matmul_kernel<V> : matmul_kernel<1>, blocks_for(tasks, kWarps), kThreads, 0,
         stream, a, entries);
}

}  // namespace finescope::cuda
