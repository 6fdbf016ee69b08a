// Exact scores: of candidates, and of everything for rows that no screen can separate.
#include "cuda/launch.h"
#include "cuda/pair_dot.h"
#include "cuda/select.h"

namespace finescope::cuda {
namespace {

// Widening takes as long as several multiplications, so a block widens its row of x once, into shared memory,
// where that has room for it.
constexpr int64_t kWideRow = int64_t{60} << 10;
inline size_t wide_bytes(int64_t D) {
  return D * 8 <= kWideRow ? static_cast<size_t>(D) * 8 : 0;
}

// Whether rows can be read kOwn elements at a time: of w, where x lies widened in shared memory, or of both.
struct Aligned {
  bool w, both;
};
template <class X, class W>
Aligned aligned_for(const TopkArgs& a) {
  const bool w = aligned<W, kOwn>(a.w.data, a.w.stride, a.D);
  return {w, w && aligned<X, kOwn>(a.x.data, a.x.stride, a.D)};
}

// A row of x in shared memory; all threads of the block call.
template <class X>
__device__ void widen(const X* x, int64_t D, double* wide) {
  for (int64_t d = threadIdx.x; d < D; d += kThreads) wide[d] = to_double(x[d]);
  __syncthreads();
}

// A row of x and some of its candidates for each block; a team for each candidate.
template <bool kWide, bool kNorm, class X, class W>
__global__ void __launch_bounds__(kThreads, kBlocks) rescore_kernel(TopkArgs a, Aligned aligned) {
  const int64_t row = blockIdx.x;
  // Another block of this row may just be changing its state: all threads must see the same.
  if (__syncthreads_or(a.state[row] != kScreened)) return;
  FINESCOPE_SHARED(double, wide);
  const X* x = static_cast<const X*>(a.x.data) + row * a.x.stride;
  double* words = a.word + row * a.parts * a.capacity;
  const int32_t* ids = a.id + row * a.parts * a.capacity;
  const int64_t found = a.found[row];
  if (blockIdx.y * static_cast<int64_t>(kTeams) >= found) return;
  if (kWide) widen(x, a.D, wide);
  const int64_t step = gridDim.y * static_cast<int64_t>(kTeams);
  for (int64_t base = blockIdx.y * static_cast<int64_t>(kTeams); base < found; base += step) {
    const int64_t i = base + threadIdx.x / kTeam;
    // All teams of a warp take part in its exchanges.
    const int64_t id = ids[i < found ? i : base];
    double dot, norm;
    const W* w = static_cast<const W*>(a.w.data) + id * a.w.stride;
    if (kWide) {
      pair_dot<kNorm, X>(wide, w, a.D, aligned.w, &dot, &norm);
    } else {
      pair_dot<kNorm, X>(x, w, a.D, aligned.both, &dot, &norm);
    }
    if (i >= found || threadIdx.x % kTeam != 0) continue;
    const double score = exact_score(a.metric, dot, a.bias == nullptr ? 0.0 : a.bias[id], a.norm[row], norm);
    // The truth of a candidate is known now: a bound that it breaks (a library that multiplies in less than
    // it was asked for) is no bound, and the row is scanned.
    union {
      double word;
      float screened[2];
    } was{words[i]};
    const double off = fabs(score - static_cast<double>(was.screened[0]));
    if (off > static_cast<double>(was.screened[1])) a.state[row] = kScan;
    words[i] = score;
  }
}

constexpr int kTile = 128;

// A row to be scanned and a part of the columns for each block.
template <bool kWide, class X, class W>
__global__ void __launch_bounds__(kThreads, kBlocks) scan_kernel(TopkArgs a, Aligned aligned) {
  __shared__ double tile[kTile];
  __shared__ int added[kThreads / 32];
  const int64_t row = blockIdx.x, part = blockIdx.y, unit = row * a.parts + part;
  if (a.state[row] != kScan) return;
  FINESCOPE_SHARED(double, wide);
  const int64_t begin = a.N * part / a.parts, end = a.N * (part + 1) / a.parts;
  const X* x = static_cast<const X*>(a.x.data) + row * a.x.stride;
  if (kWide) widen(x, a.D, wide);
  double* words = a.word + unit * a.capacity;
  int32_t* ids = a.id + unit * a.capacity;
  // The best k so far, then hits that may be better. Once there are k, a later column must beat the last.
  int64_t n = 0;
  double beaten = a.floor;
  for (int64_t base = begin; base < end; base += kTile) {
    if (n + kTile > a.capacity) {
      sort_hits(words, ids, n);
      n = n < a.k ? n : a.k;
      if (n == a.k) beaten = words[a.k - 1] > beaten ? words[a.k - 1] : beaten;
    }
    for (int first = 0; first < kTile; first += kTeams) {
      const int place = first + threadIdx.x / kTeam;
      const int64_t id = base + place < end ? base + place : begin;
      double dot, norm;
      const W* w = static_cast<const W*>(a.w.data) + id * a.w.stride;
      if (kWide) {
        pair_dot<true, X>(wide, w, a.D, aligned.w, &dot, &norm);
      } else {
        pair_dot<true, X>(x, w, a.D, aligned.both, &dot, &norm);
      }
      if (threadIdx.x % kTeam != 0) continue;
      const bool known = isfinite(norm) && base + place < end;
      const double score =
          exact_score(a.metric, dot, a.bias == nullptr ? 0.0 : a.bias[id], a.norm[row], norm);
      tile[place] = known ? score : static_cast<double>(NAN);
    }
    __syncthreads();
    const int place = threadIdx.x, lane = threadIdx.x % 32;
    bool keep = false;
    if (place < kTile && tile[place] > beaten) {
      keep = a.mask == nullptr || a.mask[base + place] != 0;
      for (int64_t e = 0; keep && e < a.E; ++e) {
        const int64_t excluded = a.exclude[row * a.E + e];
        keep = excluded < 0 || excluded != base + place + a.id_offset;
      }
    }
    const unsigned stays = __ballot_sync(0xffffffffu, keep);
    if (lane == 0) added[threadIdx.x / 32] = __popc(stays);
    __syncthreads();
    int64_t at = n;
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      if (warp < static_cast<int>(threadIdx.x / 32)) at += added[warp];
      n += added[warp];
    }
    if (keep) {
      at += __popc(stays & ((1u << lane) - 1));
      words[at] = tile[place];
      ids[at] = static_cast<int32_t>(base + place);
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) a.count[unit] = static_cast<int32_t>(n);
}

__global__ void scan_all_kernel(TopkArgs a) {
  for (int64_t row = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; row < a.R;
       row += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    if (a.state[row] != kBad) a.state[row] = kScan;
  }
}

// The parts of a scanned row, one behind the other.
__global__ void __launch_bounds__(kThreads) gather_kernel(TopkArgs a) {
  const int64_t row = blockIdx.x;
  if (a.state[row] != kScan) return;
  double* words = a.word + row * a.parts * a.capacity;
  int32_t* ids = a.id + row * a.parts * a.capacity;
  int64_t kept = 0;
  for (int64_t part = 0; part < a.parts; ++part) {
    const int64_t n = a.count[row * a.parts + part];
    for (int64_t base = 0; base < n; base += kThreads) {
      const int64_t i = base + threadIdx.x;
      double word = 0.0;
      int32_t id = 0;
      if (i < n) word = words[part * a.capacity + i], id = ids[part * a.capacity + i];
      __syncthreads();
      if (i < n) words[kept + i] = word, ids[kept + i] = id;
      __syncthreads();
    }
    kept += n;
  }
  if (threadIdx.x == 0) a.found[row] = kept;
}

}  // namespace

void launch_rescore(const TopkArgs& a, cudaStream_t stream) {
  // Few rows: several blocks share the candidates of one.
  const int64_t share = a.R >= 1024 ? 1 : 1024 / a.R;
  with_types(a.x.dtype, a.w.dtype, [&](auto* x, auto* w) {
    using X = std::remove_pointer_t<decltype(x)>;
    using W = std::remove_pointer_t<decltype(w)>;
    const dim3 grid(static_cast<unsigned>(a.R), static_cast<unsigned>(share));
    if constexpr (sizeof(X) < 8 && sizeof(W) < 8) {  // float64 is never screened
      const size_t shared = wide_bytes(a.D);
      const bool norm = a.metric == Metric::cosine;
      const auto kernel = shared > 0
                              ? (norm ? rescore_kernel<true, true, X, W> : rescore_kernel<true, false, X, W>)
                              : rescore_kernel<false, true, X, W>;
      launch("rescore", kernel, grid, kThreads, shared, stream, a, aligned_for<X, W>(a));
    }
  });
}

void launch_scan_all(const TopkArgs& a, cudaStream_t stream) {
  launch("scan_all", scan_all_kernel, static_cast<unsigned>((a.R + kThreads - 1) / kThreads), kThreads, 0,
         stream, a);
}

void launch_scan(const TopkArgs& a, cudaStream_t stream) {
  with_types(a.x.dtype, a.w.dtype, [&](auto* x, auto* w) {
    using X = std::remove_pointer_t<decltype(x)>;
    using W = std::remove_pointer_t<decltype(w)>;
    const size_t shared = wide_bytes(a.D);
    const auto kernel = shared > 0 ? scan_kernel<true, X, W> : scan_kernel<false, X, W>;
    launch("scan", kernel, dim3(static_cast<unsigned>(a.R), static_cast<unsigned>(a.parts)), kThreads, shared,
           stream, a, aligned_for<X, W>(a));
  });
  launch("gather", gather_kernel, static_cast<unsigned>(a.R), kThreads, 0, stream, a);
}

}  // namespace finescope::cuda
