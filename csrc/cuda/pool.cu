// pool_codes: entries sorted by document and latent, one thread to add up each run of them in its order, and
// a block to choose the strongest of a document.
#include <cmath>

#include "cuda/pool.h"
#include "cuda/rows.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
// Blocks that choose: documents are many and mostly short.
constexpr int kChoosers = 128;
constexpr int kBins = 256;

[[noreturn]] __device__ __attribute__((noinline)) void refuse_offsets(int64_t first, int64_t last, int64_t B,
                                                                      int64_t n) {
  if (n < 0) {
    printf("finescope: pool_codes: offsets must run from 0 to B=%lld, got %lld to %lld\n",
           static_cast<long long>(B), static_cast<long long>(first), static_cast<long long>(last));
  } else {
    printf("finescope: pool_codes: offsets falls after document %lld\n", static_cast<long long>(n));
  }
  stop();
}

[[noreturn]] __device__ __attribute__((noinline)) void refuse_latent(int64_t latent) {
  printf("finescope: pool_codes: indices holds %lld with a positive value; latents start at 0\n",
         static_cast<long long>(latent));
  stop();
}

__global__ void __launch_bounds__(kThreads) offsets_kernel(const int64_t* offsets, int64_t N, int64_t B) {
  for (int64_t n = first_thread(); n <= N; n += thread_stride()) {
    if (n == 0 && (offsets[0] != 0 || offsets[N] != B)) refuse_offsets(offsets[0], offsets[N], B, -1);
    if (n < N && offsets[n] > offsets[n + 1]) refuse_offsets(0, 0, B, n);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const T* values, const int64_t* indices, const int64_t* offsets, int64_t entries, int64_t K,
                int64_t N, int64_t* latent, int32_t* document) {
  for (int64_t i = first_thread(); i < entries; i += thread_stride()) {
    const T value = values[i];
    if (!(value > 0 && value <= kLargest<T>)) {
      latent[i] = 0;
      document[i] = static_cast<int32_t>(N);
      continue;
    }
    if (indices[i] < 0) refuse_latent(indices[i]);
    latent[i] = indices[i];
    // The last document that begins at or before the token: those without tokens are passed over.
    const int64_t token = i / K;
    int64_t low = 0, high = N;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (offsets[middle + 1] <= token) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    document[i] = static_cast<int32_t>(low);
  }
}

__global__ void __launch_bounds__(kThreads)
    take_kernel(const int32_t* from, const int64_t* order, int64_t n, int32_t* to) {
  for (int64_t p = first_thread(); p < n; p += thread_stride()) to[p] = from[order[p]];
}

__device__ inline double combine(Reduce reduce, double total, double value) {
  if (reduce == Reduce::max) return total > value ? total : value;
  return total + (reduce == Reduce::count ? 1.0 : value);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(PoolArgs a, int64_t entries, int64_t N, const int64_t* sorted_latent,
                const int64_t* by_latent, const int32_t* document, const int64_t* by_document,
                int64_t* latent, double* pooled) {
  const T* values = static_cast<const T*>(a.values);
  // Whether a token's entries of one latent are added up before they are reduced.
  const bool per_token = a.reduce == Reduce::max || a.reduce == Reduce::count;
  for (int64_t p = first_thread(); p < entries; p += thread_stride()) {
    const int32_t n = document[p];
    const int64_t mine = sorted_latent[by_document[p]];
    latent[p] = mine;
    const bool head = n < N && (p == 0 || document[p - 1] != n || sorted_latent[by_document[p - 1]] != mine);
    double total = head ? 0.0 : -1.0;
    for (int64_t s = p; head && s < entries && document[s] == n && sorted_latent[by_document[s]] == mine;) {
      int64_t i = by_latent[by_document[s++]];
      const int64_t token = i / a.K;
      double value = static_cast<double>(values[i]);
      while (per_token && s < entries && document[s] == n && sorted_latent[by_document[s]] == mine) {
        i = by_latent[by_document[s]];
        if (i / a.K != token) break;
        value += static_cast<double>(values[i]);
        ++s;
      }
      total = combine(a.reduce, total, value);
    }
    if (head && (a.reduce == Reduce::mean || a.reduce == Reduce::sqrt_mean)) {
      total /= static_cast<double>(a.offsets[n + 1] - a.offsets[n]);
      if (a.reduce == Reduce::sqrt_mean) total = std::sqrt(total);
    }
    pooled[p] = total;
  }
}

// How many threads of the block before this one say yes, and how many do in all.
__device__ inline int64_t rank_in_block(bool yes, int* counts, int64_t* all) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned votes = __ballot_sync(kWhole, yes);
  __syncthreads();  // counts of the call before have been read
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int64_t before = __popc(votes & ((1u << lane) - 1u));
  *all = 0;
  for (int w = 0; w < kChoosers / kWarp; ++w) {
    if (w < warp) before += counts[w];
    *all += counts[w];
  }
  return before;
}

// A pooled value as a number that orders like it: values are not negative.
__device__ inline uint64_t key_of(double pooled) {
  return static_cast<uint64_t>(__double_as_longlong(pooled));
}

// The keep-th largest key of the heads among pooled[begin..end), and how many heads with that very key belong
// to the `keep` largest. Eight bits at a time, from the top.
__device__ inline uint64_t select_key(const double* pooled, int64_t begin, int64_t end, int64_t keep,
                                      int64_t* ties) {
  __shared__ unsigned long long bins[kBins];
  __shared__ uint64_t chosen;
  __shared__ int64_t left;
  uint64_t prefix = 0;
  int64_t remaining = keep;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kBins; i += kChoosers) bins[i] = 0;
    __syncthreads();
    for (int64_t p = begin + threadIdx.x; p < end; p += kChoosers) {
      const uint64_t key = key_of(pooled[p]);
      // The sign bit marks entries that are not heads.
      if (key >> 63 || (shift < 56 && key >> (shift + 8) != prefix >> (shift + 8))) continue;
      atomicAdd(&bins[(key >> shift) % kBins], 1ull);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      // Lane l has the eight bins that are the l-th from the top.
      const int top = kBins - 1 - 8 * static_cast<int>(threadIdx.x);
      int64_t mine = 0;
      for (int i = 0; i < 8; ++i) mine += static_cast<int64_t>(bins[top - i]);
      int64_t above = mine;
      for (int step = 1; step < kWarp; step *= 2) {
        const int64_t other = __shfl_up_sync(kWhole, above, step);
        if (static_cast<int>(threadIdx.x) >= step) above += other;
      }
      const bool here = above >= remaining && above - mine < remaining;
      if (here) {
        int64_t rest = remaining - (above - mine);
        int bin = top;
        while (static_cast<int64_t>(bins[bin]) < rest) rest -= static_cast<int64_t>(bins[bin--]);
        chosen = prefix | static_cast<uint64_t>(bin) << shift;
        left = rest;
      }
    }
    __syncthreads();
    prefix = chosen;
    remaining = left;
  }
  *ties = remaining;
  return prefix;
}

__global__ void __launch_bounds__(kChoosers)
    select_kernel(PoolArgs a, int64_t N, const int64_t* start, const int64_t* latent, const double* pooled) {
  __shared__ int counts[kChoosers / kWarp];
  for (int64_t n = blockIdx.x; n < N; n += gridDim.x) {
    const int64_t begin = start[n], end = start[n + 1];
    int64_t heads = 0;
    for (int64_t p = begin; p < end && heads <= a.keep; p += kChoosers) {
      int64_t more;
      rank_in_block(p + threadIdx.x < end && pooled[p + threadIdx.x] >= 0.0, counts, &more);
      heads += more;
    }
    const bool all = heads <= a.keep;
    int64_t ties = 0;
    const uint64_t threshold = all ? 0 : select_key(pooled, begin, end, a.keep, &ties);
    int64_t stored = 0, tied = 0;
    for (int64_t first = begin; first < end && stored < a.keep; first += kChoosers) {
      const int64_t p = first + threadIdx.x;
      const double value = p < end ? pooled[p] : -1.0;
      const bool head = value >= 0.0, tie = head && !all && key_of(value) == threshold;
      int64_t more;
      const int64_t rank = tied + rank_in_block(tie, counts, &more);
      tied += more;
      const bool kept = head && (all || key_of(value) > threshold || (tie && rank < ties));
      const int64_t place = n * a.keep + stored + rank_in_block(kept, counts, &more);
      stored += more;
      if (kept) {
        a.out_values[place] = static_cast<float>(value);
        a.out_indices[place] = latent[p];
      }
    }
    for (int64_t s = stored + threadIdx.x; s < a.keep; s += kChoosers) {
      a.out_values[n * a.keep + s] = 0.0f;
      a.out_indices[n * a.keep + s] = -1;
    }
  }
}

}  // namespace

void launch_pool_keys(const PoolArgs& a, int64_t B, int64_t N, int64_t* latent, int32_t* document,
                      cudaStream_t stream) {
  launch("pool_codes", offsets_kernel, blocks_for(N + 1, kThreads), kThreads, 0, stream, a.offsets, N, B);
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("pool_codes", keys_kernel<T>, blocks_for(B * a.K, kThreads), kThreads, 0, stream,
           static_cast<const T*>(a.values), a.indices, a.offsets, B * a.K, a.K, N, latent, document);
  };
  a.f64 ? run(static_cast<double*>(nullptr)) : run(static_cast<float*>(nullptr));
}

void launch_take(const int32_t* from, const int64_t* order, int64_t n, int32_t* to, cudaStream_t stream) {
  launch("pool_codes", take_kernel, blocks_for(n, kThreads), kThreads, 0, stream, from, order, n, to);
}

void launch_pool_sums(const PoolArgs& a, int64_t entries, int64_t N, const int64_t* sorted_latent,
                      const int64_t* by_latent, const int32_t* document, const int64_t* by_document,
                      int64_t* latent, double* pooled, cudaStream_t stream) {
  launch("pool_codes", a.f64 ? sums_kernel<double> : sums_kernel<float>, blocks_for(entries, kThreads),
         kThreads, 0, stream, a, entries, N, sorted_latent, by_latent, document, by_document, latent, pooled);
}

void launch_pool_select(const PoolArgs& a, int64_t N, const int64_t* start, const int64_t* latent,
                        const double* pooled, cudaStream_t stream) {
  if (a.keep == 0) return;
  launch("pool_codes", select_kernel, blocks_for(N, 1), kChoosers, 0, stream, a, N, start, latent, pooled);
}

}  // namespace finescope::cuda
