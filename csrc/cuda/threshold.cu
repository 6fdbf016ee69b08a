// Latents above thresholds: bits, their number, and what they stand for.
#include "cuda/launch.h"
#include "cuda/pair_dot.h"
#include "cuda/threshold.h"

namespace finescope::cuda {
namespace {

constexpr int kWarps = 4;
// Blocks that a multiprocessor holds at least. Left to itself, the compiler spills registers to hold more.
constexpr int kScanBlocks = 4, kWriteBlocks = 2;
// Columns that a warp decides on at a time, a word for each lane.
constexpr int64_t kUnit = 32 * 32;
constexpr int kPairs = kWarp / kTeam;

__device__ bool is_bad(const ThresholdArgs& a, int64_t row) {
  return a.state[row] == kBad || *a.broken != 0;
}

// The sum of the lanes up to this one.
__device__ int sum_up_to(int x) {
  const int lane = threadIdx.x % kWarp;
  for (int by = 1; by < kWarp; by *= 2) {
    const int other = __shfl_up_sync(kWhole, x, by);
    if (lane >= by) x += other;
  }
  return x;
}

// The set bits of a warp's words, that of lane 0 starting at column `first`, in order.
struct Bits {
  uint32_t word;
  int64_t first;
  int through, before;  // bits up to and with this lane's, and before it

  __device__ Bits(uint32_t word, int64_t first) : word(word), first(first) {
    through = sum_up_to(__popc(word));
    before = through - __popc(word);
  }

  __device__ int count() const { return __shfl_sync(kWhole, through, kWarp - 1); }
  // The column of the bit of this rank, which may differ from lane to lane.
  __device__ int64_t column(int rank) const {
    int owner = 0;
    for (int step = kWarp / 2; step > 0; step /= 2) {
      if (__shfl_sync(kWhole, through, owner + step - 1) <= rank) owner += step;
    }
    uint32_t left = __shfl_sync(kWhole, word, owner);
    for (int skip = rank - __shfl_sync(kWhole, before, owner); skip > 0; --skip) left &= left - 1;
    return first + owner * 32 + __ffs(static_cast<int>(left)) - 1;
  }
};

// Calls body(base, rank, column, dot) for the set bits of a warp, kPairs of them from `base` on at a time,
// each by a team; the dot is valid in its first thread. All threads of the warp call, and are called: those
// of teams that have none left with the last rank once more.
template <class X, class W, class Body>
__device__ void each_pair(const ThresholdArgs& a, const X* x, const Bits& bits, bool aligned,
                          const Body& body) {
  const int total = bits.count(), team = threadIdx.x % kWarp / kTeam;
  for (int base = 0; base < total; base += kPairs) {
    const int rank = base + team < total ? base + team : total - 1;
    const int64_t column = bits.column(rank);
    double dot, norm;
    pair_dot<false, X>(x, static_cast<const W*>(a.w.data) + column * a.w.stride, a.D, aligned, &dot, &norm);
    body(base, rank, column, dot);
  }
}

// The bits of those that exceed; `see(column, dot)` is called with all, by the first threads of teams.
template <class X, class W, class See>
__device__ uint32_t decide(const ThresholdArgs& a, int64_t row, uint32_t candidates, int64_t first,
                           bool aligned, const See& see) {
  const Bits bits(candidates, first);
  uint32_t kept = candidates, rest = candidates;
  int next = bits.before;
  const X* x = static_cast<const X*>(a.x.data) + row * a.x.stride;
  each_pair<X, W>(a, x, bits, aligned, [&](int base, int, int64_t column, double dot) {
    bool exceeds = false;
    if (threadIdx.x % kTeam == 0) {
      exceeds = (a.bias != nullptr ? dot + a.bias[column] : dot) > a.threshold[column];
      see(column, dot);
    }
    const unsigned found = __ballot_sync(kWhole, exceeds);
    // Every lane drops those of its own bits that were among these pairs and do not exceed.
    for (; rest != 0 && next < base + kPairs; ++next, rest &= rest - 1) {
      if ((found >> (next - base) * kTeam & 1u) == 0) kept &= ~(rest & (0u - rest));
    }
  });
  return kept;
}

__global__ void shift_kernel(const double* bias, const double* threshold, int64_t N, double* shift,
                             int32_t* broken) {
  // Beyond 2^60 a column always is a candidate (topk_measure.cu).
  constexpr double kEnd = 1e38;
  for (int64_t f = first_thread(); f < N; f += thread_stride()) {
    const double b = bias != nullptr ? bias[f] : 0.0, t = threshold[f];
    if (!isfinite(b)) *broken = 1;
    const double exact = b - t + (fabs(b) + fabs(t)) * 0x1p-50;
    shift[f] = !(t < kInfinity) ? -kNever : exact <= -kEnd ? -kEnd : exact < kEnd ? exact : kEnd;
  }
}

// What a product says of dot + shift, and how far that may lie from it.
struct Screened {
  float score, bound;

  __device__ Screened(const Measure& x, const Measure& w, float product) {
    score = product * (x.scale * w.scale) + w.bias;
    // Roundings of an integer product, of the scaling, of the bias and its addition, and of this bound.
    bound = (x.error * w.size + x.size * w.error) * (1.0f + 0x1p-18f) +
            (fabsf(score) + 2.0f * fabsf(w.bias)) * 0x1p-20f;
    if (!(bound < INFINITY)) bound = INFINITY;
  }
};

// A row and kUnit columns of the chunk for each warp.
template <class Product, class X, class W>
__global__ void __launch_bounds__(kWarps* kWarp)
    screen_kernel(ThresholdArgs a, FilterArgs chunk, bool aligned) {
  constexpr int kEach = 4;
  const int lane = threadIdx.x % kWarp;
  const int64_t units = (chunk.width + kUnit - 1) / kUnit;
  const int64_t unit = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  const int64_t row = unit / units, begin = unit % units * kUnit;
  // Another warp of this row may just be changing its state: all lanes must see the same.
  if (row >= a.R || __shfl_sync(kWhole, a.state[row], 0) != kScreened) return;
  const Product* products = static_cast<const Product*>(chunk.products) + row * chunk.stride;
  const Measure x = a.measure[row];
  uint32_t candidates = 0;
  for (int step = 0; step < kWarp && begin + step * 32 < chunk.width; step += kEach) {
    // All loads first: what follows them waits only once.
    Measure w[kEach];
    Product product[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t column = begin + (step + i) * 32 + lane;
      const int64_t there = column < chunk.width ? column : chunk.width - 1;
      w[i] = chunk.columns[there];
      product[i] = products[there];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Screened at(x, w[i], static_cast<float>(product[i]));
      // Written so that a NaN, of a screen that overflowed, passes.
      const bool may = !(at.score + at.bound <= 0.0f) && w[i].bias > -INFINITY;
      const unsigned word = __ballot_sync(kWhole, may && begin + (step + i) * 32 + lane < chunk.width);
      if (lane == step + i) candidates = word;
    }
  }
  const uint32_t kept =
      decide<X, W>(a, row, candidates, chunk.first + begin, aligned, [&](int64_t column, double dot) {
        // The truth is known now: a bound that it breaks (a library that multiplies in less than it was asked
        // for) is no bound, and the row is scanned.
        const int64_t at = column - chunk.first;
        const Screened was(x, chunk.columns[at], static_cast<float>(products[at]));
        const double off = fabs(dot + a.shift[column] - static_cast<double>(was.score));
        if (off > static_cast<double>(was.bound)) a.state[row] = kScan;
      });
  if (begin + lane * 32 < chunk.width) a.bits[row * a.words + (chunk.first + begin) / 32 + lane] = kept;
}

__global__ void scan_rows_kernel(int32_t* state, int64_t R) {
  for (int64_t row = first_thread(); row < R; row += thread_stride()) {
    if (state[row] != kBad) state[row] = kScan;
  }
}

// A row to be scanned and kUnit columns for each warp.
template <class X, class W>
__global__ void __launch_bounds__(kWarps* kWarp, kScanBlocks) scan_kernel(ThresholdArgs a, bool aligned) {
  const int lane = threadIdx.x % kWarp;
  const int64_t units = (a.N + kUnit - 1) / kUnit;
  const int64_t unit = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  const int64_t row = unit / units, begin = unit % units * kUnit;
  if (row >= a.R || a.state[row] != kScan) return;
  const int64_t left = a.N - begin - lane * 32;
  const uint32_t all = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0u;
  const uint32_t kept = decide<X, W>(a, row, all, begin, aligned, [](int64_t, double) {});
  if (left > 0) a.bits[row * a.words + begin / 32 + lane] = kept;
}

__global__ void count_kernel(ThresholdArgs a) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = first_warp(); row < a.R; row += warp_stride()) {
    int count = 0;
    for (int64_t word = lane; word < a.words; word += kWarp) count += __popc(a.bits[row * a.words + word]);
    count = __shfl_sync(kWhole, sum_up_to(count), kWarp - 1);
    if (lane == 0) a.indptr[row + 1] = is_bad(a, row) ? 1 : count;
  }
}

// One block: sums of what each thread's run of rows holds, then of the rows.
__global__ void __launch_bounds__(kThreads) begin_kernel(ThresholdArgs a) {
  __shared__ int64_t held[kThreads];
  const int64_t begin = a.R * threadIdx.x / kThreads, end = a.R * (threadIdx.x + 1) / kThreads;
  int64_t sum = 0;
  for (int64_t row = begin; row < end; ++row) sum += a.indptr[row + 1];
  held[threadIdx.x] = sum;
  __syncthreads();
  int64_t at = a.indptr[0];
  for (int thread = 0; thread < static_cast<int>(threadIdx.x); ++thread) at += held[thread];
  for (int64_t row = begin; row < end; ++row) {
    at += a.indptr[row + 1];
    a.indptr[row + 1] = at;
  }
}

template <class T>
__device__ void put(const ThresholdArgs& a, int64_t column, double dot, T* to) {
  if (a.scale != nullptr) {
    *to = static_cast<T>(a.scale[column] * dot + a.offset[column]);
  } else {
    *to = static_cast<T>(a.bias != nullptr ? dot + a.bias[column] : dot);
  }
}

// A block for each row, a word for each of its threads at a time. Dots are made once more: there are few.
template <class T, class X, class W>
__global__ void __launch_bounds__(kThreads, kWriteBlocks)
    write_kernel(ThresholdArgs a, int64_t before, int32_t* latent, T* value, bool aligned) {
  __shared__ int of_warp[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  int64_t at = a.indptr[row] - before;
  if (is_bad(a, row)) {
    if (threadIdx.x == 0) latent[at] = 0, value[at] = static_cast<T>(NAN);
    return;
  }
  const X* x = static_cast<const X*>(a.x.data) + row * a.x.stride;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t base = 0; base < a.words; base += kThreads) {
    const int64_t place = base + threadIdx.x;
    const Bits bits(place < a.words ? a.bits[row * a.words + place] : 0u, (place - lane) * 32);
    const int total = bits.count();
    if (lane == 0) of_warp[warp] = total;
    __syncthreads();
    int64_t mine = at;
    for (int other = 0; other < kThreads / kWarp; ++other) {
      if (other < warp) mine += of_warp[other];
      at += of_warp[other];
    }
    each_pair<X, W>(a, x, bits, aligned, [&](int first, int rank, int64_t column, double dot) {
      if (threadIdx.x % kTeam != 0 || rank != first + lane / kTeam) return;
      latent[mine + rank] = static_cast<int32_t>(column);
      put(a, column, dot, value + mine + rank);
    });
    __syncthreads();
  }
}

// body(X*, W*, whether rows of both can be read kOwn elements at a time)
template <class Body>
void with_rows(const ThresholdArgs& a, const Body& body) {
  with_types(a.x.dtype, a.w.dtype, [&](auto* x, auto* w) {
    using X = std::remove_pointer_t<decltype(x)>;
    using W = std::remove_pointer_t<decltype(w)>;
    body(x, w, aligned<X, kOwn>(a.x.data, a.x.stride, a.D) && aligned<W, kOwn>(a.w.data, a.w.stride, a.D));
  });
}

// Blocks of kWarps warps, one for each row and unit of columns.
dim3 blocks_of_units(int64_t R, int64_t columns) {
  const int64_t units = R * ((columns + kUnit - 1) / kUnit);
  return dim3(static_cast<unsigned>((units + kWarps - 1) / kWarps));
}

}  // namespace

void launch_shift(const double* bias, const double* threshold, int64_t N, double* shift, int32_t* broken,
                  cudaStream_t stream) {
  launch("shift", shift_kernel, blocks_for(N, kThreads), kThreads, 0, stream, bias, threshold, N, shift,
         broken);
}

void launch_screen(const ThresholdArgs& a, const FilterArgs& chunk, cudaStream_t stream) {
  with_rows(a, [&](auto* x, auto* w, bool aligned) {
    using X = std::remove_pointer_t<decltype(x)>;
    using W = std::remove_pointer_t<decltype(w)>;
    if constexpr (sizeof(X) < 8 && sizeof(W) < 8) {  // float64 is never screened
      launch("screen", chunk.integers ? screen_kernel<int32_t, X, W> : screen_kernel<float, X, W>,
             blocks_of_units(a.R, chunk.width), kWarps * kWarp, 0, stream, a, chunk, aligned);
    }
  });
}

void launch_scan_rows(int32_t* state, int64_t R, cudaStream_t stream) {
  launch("scan_rows", scan_rows_kernel, blocks_for(R, kThreads), kThreads, 0, stream, state, R);
}

void launch_scan_bits(const ThresholdArgs& a, cudaStream_t stream) {
  with_rows(a, [&](auto* x, auto* w, bool aligned) {
    using X = std::remove_pointer_t<decltype(x)>;
    using W = std::remove_pointer_t<decltype(w)>;
    launch("scan_bits", scan_kernel<X, W>, blocks_of_units(a.R, a.N), kWarps * kWarp, 0, stream, a, aligned);
  });
}

void launch_count(const ThresholdArgs& a, cudaStream_t stream) {
  launch("count", count_kernel, blocks_for(a.R, kThreads / kWarp), kThreads, 0, stream, a);
  launch("begin_rows", begin_kernel, 1, kThreads, 0, stream, a);
}

void launch_write(const ThresholdArgs& a, int64_t before, int32_t* latent, void* value, bool f64,
                  cudaStream_t stream) {
  with_rows(a, [&](auto* x, auto* w, bool aligned) {
    using X = std::remove_pointer_t<decltype(x)>;
    using W = std::remove_pointer_t<decltype(w)>;
    const dim3 grid(static_cast<unsigned>(a.R));
    if (f64) {
      launch("write", write_kernel<double, X, W>, grid, kThreads, 0, stream, a, before, latent,
             static_cast<double*>(value), aligned);
    } else if constexpr (sizeof(X) < 8 && sizeof(W) < 8) {
      launch("write", write_kernel<float, X, W>, grid, kThreads, 0, stream, a, before, latent,
             static_cast<float*>(value), aligned);
    }
  });
}

int64_t read_back(const int64_t* at, cudaStream_t stream) {
  int64_t value = 0;
  check(cudaMemcpyAsync(&value, at, sizeof value, cudaMemcpyDeviceToHost, stream), "the number of entries");
  check(cudaStreamSynchronize(stream), "the number of entries, which the host waits for");
  return value;
}

}  // namespace finescope::cuda
