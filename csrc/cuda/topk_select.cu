// The k best of a row's exact scores, in order, and what stands where there are fewer.
#include "cuda/launch.h"
#include "cuda/select.h"
#include "cuda/topk.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
// Candidates that are sorted in shared memory: 12 bytes each. More are sorted where they are.
constexpr int64_t kNear = 2048;

template <class T>
__device__ void put(const TopkArgs& a, int64_t row, int64_t place, T score, int64_t id) {
  static_cast<T*>(a.score)[row * a.k + place] = score;
  a.out_id[row * a.k + place] = id;
}

// Encode: slots written..k get the value 0 and the lowest latents that the row does not hold yet. Of k
// latents fewer than k are taken, so the lowest free ones are below k. `bits` has room for k of them.
template <class T>
__device__ void fill_lowest(const TopkArgs& a, int64_t row, int64_t written, uint32_t* bits) {
  __shared__ int64_t before[kThreads];
  const int64_t words = (a.k + 31) / 32;
  for (int64_t i = threadIdx.x; i < words; i += kThreads) bits[i] = 0;
  __syncthreads();
  for (int64_t j = threadIdx.x; j < written; j += kThreads) {
    const int64_t id = a.out_id[row * a.k + j];
    if (id < a.k) atomicOr(&bits[id / 32], 1u << id % 32);
  }
  __syncthreads();
  // Every thread looks after a run of words; those before it tell it where its free latents go.
  const int64_t run = (words + kThreads - 1) / kThreads;
  const int64_t begin = run * threadIdx.x < words ? run * threadIdx.x : words;
  const int64_t end = begin + run < words ? begin + run : words;
  int64_t free = 0;
  for (int64_t i = begin; i < end; ++i) free += 32 - __popc(bits[i]);
  before[threadIdx.x] = free;
  __syncthreads();
  int64_t place = written;
  for (int thread = 0; thread < static_cast<int>(threadIdx.x); ++thread) place += before[thread];
  for (int64_t i = begin; i < end && place < a.k; ++i) {
    for (int bit = 0; bit < 32 && place < a.k; ++bit) {
      if ((bits[i] >> bit & 1u) == 0) put<T>(a, row, place++, T{0}, i * 32 + bit);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) select_kernel(TopkArgs a) {
  FINESCOPE_SHARED(double, near_score);
  int32_t* near_id = reinterpret_cast<int32_t*>(near_score + kNear);
  __shared__ int64_t above;
  const int64_t row = blockIdx.x;
  const bool encode = a.metric == Metric::encode;
  if (a.state[row] == kBad || (encode && a.broken != nullptr && *a.broken != 0)) {
    for (int64_t j = threadIdx.x; j < a.k; j += kThreads) {
      put<T>(a, row, j, encode ? static_cast<T>(NAN) : static_cast<T>(-INFINITY), encode ? j : -1);
    }
    return;
  }
  double* score = a.word + row * a.parts * a.capacity;
  int32_t* id = a.id + row * a.parts * a.capacity;
  const int64_t n = a.found[row];
  if (n <= kNear) {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) near_score[i] = score[i], near_id[i] = id[i];
    score = near_score;
    id = near_id;
  }
  if (threadIdx.x == 0) above = 0;
  __syncthreads();
  sort_hits(score, id, n);
  __syncthreads();
  // Scores fall: those above the floor, and (rounded) not below the minimum, come first.
  const int64_t kept = n < a.k ? n : a.k;
  for (int64_t j = threadIdx.x; j < kept; j += kThreads) {
    const T rounded = static_cast<T>(score[j]);
    if (!(score[j] > a.floor) || !(static_cast<double>(rounded) >= a.min_score)) continue;
    put<T>(a, row, j, rounded, id[j] + a.id_offset);
    atomicAdd(reinterpret_cast<unsigned long long*>(&above), 1ull);
  }
  __syncthreads();
  if (encode) {
    // The candidates' place is free now: 12 bytes for each of more than k.
    fill_lowest<T>(a, row, above, reinterpret_cast<uint32_t*>(a.word + row * a.parts * a.capacity));
  } else {
    for (int64_t j = above + threadIdx.x; j < a.k; j += kThreads) {
      put<T>(a, row, j, static_cast<T>(-INFINITY), -1);
    }
  }
}

}  // namespace

void launch_select(const TopkArgs& a, cudaStream_t stream) {
  constexpr size_t kShared = kNear * (sizeof(double) + sizeof(int32_t));
  if (a.f64) {
    launch("select", select_kernel<double>, static_cast<unsigned>(a.R), kThreads, kShared, stream, a);
  } else {
    launch("select", select_kernel<float>, static_cast<unsigned>(a.R), kThreads, kShared, stream, a);
  }
}

}  // namespace finescope::cuda
