// The panel of a sparse search: which latents its queries hold, and what. A warp for each query.
#include "cuda/sparse_rows.h"

namespace finescope::cuda {
namespace {

constexpr int kScanThreads = 256;

__global__ void __launch_bounds__(kWarp)
    mark_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel) {
  const AnyEntries entries{job.queries};
  for (int q = blockIdx.x; q < panel.width; q += gridDim.x) {
    const int64_t row = panel.first + q, begin = job.queries.indptr[row], end = job.queries.indptr[row + 1];
    check_row('q', job.queries, row, begin, end, job.query_entries);
    for (int64_t i = begin + threadIdx.x; i < end; i += kWarp) {
      const uint32_t latent = in_range('q', entries.stored(i), row, job.queries.latents);
      if (entries.value(i) != 0.0) atomicOr(&panel.words[latent / 32].bits, 1u << (latent % 32));
    }
  }
}

// before[w] = bits set in words 0..w. One block.
__global__ void __launch_bounds__(kScanThreads) count_kernel(PanelWord* words, int64_t count) {
  __shared__ uint32_t sums[2][kScanThreads];
  const int64_t share = (count + kScanThreads - 1) / kScanThreads;
  const int64_t begin = share * threadIdx.x, end = begin + share < count ? begin + share : count;
  uint32_t mine = 0;
  for (int64_t w = begin; w < end; ++w) mine += static_cast<uint32_t>(__popc(words[w].bits));
  int now = 0;
  sums[now][threadIdx.x] = mine;
  for (int step = 1; step < kScanThreads; step *= 2) {
    __syncthreads();
    const int at = static_cast<int>(threadIdx.x);
    sums[now ^ 1][at] = sums[now][at] + (at >= step ? sums[now][at - step] : 0u);
    now ^= 1;
  }
  uint32_t before = sums[now][threadIdx.x] - mine;
  for (int64_t w = begin; w < end; ++w) {
    words[w].before = before;
    before += static_cast<uint32_t>(__popc(words[w].bits));
  }
}

__global__ void __launch_bounds__(kWarp)
    fill_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel) {
  const AnyEntries entries{job.queries};
  for (int q = blockIdx.x; q < kPanel; q += gridDim.x) {
    PanelQuery& query = panel.queries[q];
    if (q >= panel.width) {
      if (threadIdx.x == 0) query.norm = kNaN;
      continue;
    }
    const int64_t row = panel.first + q, begin = job.queries.indptr[row], end = job.queries.indptr[row + 1];
    // The exact norm: squares in the order of the entries.
    double square = 0.0;
    for (int64_t i = begin; i < end && threadIdx.x == 0; ++i) {
      const double value = entries.value(i);
      square += value * value;
    }
    const double norm = std::sqrt(__shfl_sync(kWhole, square, 0));
    // Beyond these the unit vector is not worth computing: lines then only say which latents the query has,
    // and every row that has one of them is scored exactly.
    const bool plain = norm > 1e-100 && norm < 1e100;
    double lost = 0.0;
    bool some = false;
    for (int64_t i = begin + threadIdx.x; i < end; i += kWarp) {
      const uint32_t latent = entries.latent(i);
      const double value = entries.value(i);
      if (value == 0.0) continue;
      some = true;
      const int64_t line = line_of(panel.words[latent / 32], latent);
      panel.exact[line * kPanel + q] = value;
      const double unit = plain ? value / norm : 0.0;
      Bf16 rounded = to_bf16(static_cast<float>(unit));
      // Never 0: that means that the query lacks the latent.
      if ((rounded.bits & 0x7fffu) == 0) rounded.bits |= 1u;
      reinterpret_cast<Bf16*>(panel.lines)[line * kPanel + q] = rounded;
      const double error = to_double(rounded) - unit;
      lost += error * error;
    }
    some = __any_sync(kWhole, some);
    for (int half = kWarp / 2; half > 0; half /= 2) lost += __shfl_down_sync(kWhole, lost, half);
    if (threadIdx.x != 0) continue;
    query.norm = norm;
    query.error = plain || !some ? std::sqrt(lost) * 1.0001 + 1e-12 : kInfinity;
    query.threshold = job.floor;
    query.row = INT64_MAX;
    query.kept = 0;
    query.fresh = 0;
    const ScreenLine line = screen_line(job.cosine, query.threshold, norm, query.error);
    query.slope = line.slope;
    query.offset = line.offset;
  }
}

}  // namespace

void launch_sparse_panel(const SparseJob& job, const SparsePanel& panel, cudaStream_t stream) {
  launch("sparse panel", mark_kernel, static_cast<unsigned>(panel.width), kWarp, 0, stream, job, panel);
  launch("sparse panel", count_kernel, 1u, kScanThreads, 0, stream, panel.words,
         (job.queries.latents + 31) / 32);
  launch("sparse panel", fill_kernel, static_cast<unsigned>(kPanel), kWarp, 0, stream, job, panel);
}

}  // namespace finescope::cuda
