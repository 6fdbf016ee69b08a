// From screened scores to candidates.
#include "cuda/launch.h"
#include "cuda/select.h"
#include "cuda/topk.h"

namespace finescope::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = 4;

// A candidate: its screened score and how far the exact one may lie from it.
union Word {
  double exact;
  struct {
    float score, bound;
  } screened;
};

__device__ Word word_at(const double* words, int64_t i) {
  Word word;
  word.exact = words[i];
  return word;
}
// An exact score that is certainly reached. Not finite: nothing is.
__device__ float lower(const Word& word) {
  const float at = word.screened.score - word.screened.bound;
  return at == at ? at : -INFINITY;
}
// Whether an exact score of tau or more is possible; also where the bound is unknown.
__device__ bool may_reach(const Word& word, float tau) {
  return !(word.screened.score + word.screened.bound < tau);
}

__global__ void begin_kernel(TopkArgs a, uint32_t open) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < a.R * a.parts;
       i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    a.count[i] = 0;
    if (i < a.R) a.tau[i] = open, a.found[i] = 0;
  }
}

// One buffer, owned by one warp: raises the row's threshold to the k-th lower bound in it, and drops what
// cannot reach the threshold. Returns how many are left.
__device__ int compact(const TopkArgs& a, int64_t row, double* words, int32_t* ids, int n) {
  const int lane = threadIdx.x % 32;
  if (n >= a.k) {
    // The largest key that at least k lower bounds reach, bit by bit.
    uint32_t key = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      const uint32_t next = key | bit;
      int reach = 0;
      for (int i = lane; i < n; i += 32) reach += key_of(lower(word_at(words, i))) >= next;
      for (int with = 16; with > 0; with /= 2) reach += __shfl_xor_sync(kAll, reach, with);
      if (reach >= a.k) key = next;
      if (reach == a.k) break;
    }
    if (lane == 0) atomicMax(&a.tau[row], key);
    __syncwarp();
  }
  const float tau = of_key(__shfl_sync(kAll, *static_cast<volatile uint32_t*>(&a.tau[row]), 0));
  int kept = 0;
  for (int base = 0; base < n; base += 32) {
    const int i = base + lane;
    Word word{};
    int32_t id = 0;
    if (i < n) word = word_at(words, i), id = ids[i];
    const unsigned stays = __ballot_sync(kAll, i < n && may_reach(word, tau));
    // Everything up to here has been read: what is written lies at or below it.
    __syncwarp();
    if (stays >> lane & 1) {
      const int place = kept + __popc(stays & ((1u << lane) - 1));
      words[place] = word.exact;
      ids[place] = id;
    }
    kept += __popc(stays);
    __syncwarp();
  }
  return kept;
}

__device__ bool wanted(const TopkArgs& a, int64_t row, int64_t id) {
  if (a.mask != nullptr && a.mask[id] == 0) return false;
  for (int64_t e = 0; e < a.E; ++e) {
    if (a.exclude[row * a.E + e] >= 0 && a.exclude[row * a.E + e] == id + a.id_offset) return false;
  }
  return true;
}

// A warp for each row and part of the chunk. Survivors are rare once the threshold is up: then all there is
// to do for 128 columns is to load them, four multiplications each, and one vote.
template <class Product>
__global__ void __launch_bounds__(kWarps * 32) filter_kernel(TopkArgs a, FilterArgs chunk) {
  constexpr int kEach = kStep / 32;
  const int lane = threadIdx.x % 32;
  const int64_t unit = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / 32;
  const int64_t row = unit / a.parts, part = unit % a.parts;
  // Another warp of this row may just be changing its state: all lanes must see the same.
  if (row >= a.R || __shfl_sync(kAll, a.state[row], 0) != kScreened) return;
  const int64_t begin = chunk.width * part / a.parts, end = chunk.width * (part + 1) / a.parts;
  const Product* products = static_cast<const Product*>(chunk.products) + row * chunk.stride;
  const Measure x = a.measure[row];
  // A floor that only an infinite result exceeds leaves all that an infinite bound keeps.
  const float floor = static_cast<float>(fmin(a.floor, static_cast<double>(kLargest<float>)));
  double* words = a.word + unit * a.capacity;
  int32_t* ids = a.id + unit * a.capacity;
  int n = a.count[unit];
  float tau = of_key(*static_cast<volatile uint32_t*>(&a.tau[row]));
  for (int64_t base = begin; base < end; base += kStep) {
    if (n + kStep > a.capacity) {
      n = compact(a, row, words, ids, n);
      tau = of_key(__shfl_sync(kAll, *static_cast<volatile uint32_t*>(&a.tau[row]), 0));
      if (n + kStep > a.capacity) {
        if (lane == 0) a.state[row] = kScan;
        break;
      }
    }
    // All loads first: what follows them waits only once.
    Measure w[kEach];
    Product dot[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t column = base + i * 32 + lane < end ? base + i * 32 + lane : end - 1;
      w[i] = chunk.columns[column];
      dot[i] = products[column];
    }
    Word word[kEach];
    bool keep[kEach];
    bool any = false;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float score = static_cast<float>(dot[i]) * (x.scale * w[i].scale) + w[i].bias;
      float bound = x.error * w[i].size + x.size * w[i].error;
      // Roundings of an integer product, of the scaling, of the bias and its addition, and of this bound.
      bound = bound * (1.0f + 0x1p-18f) + (fabsf(score) + 2.0f * fabsf(w[i].bias)) * 0x1p-20f;
      if (!(bound < INFINITY)) bound = INFINITY;
      word[i].screened.score = score;
      word[i].screened.bound = bound;
      keep[i] = base + i * 32 + lane < end && may_reach(word[i], tau) && !(score + bound <= floor) &&
                w[i].size >= 0.0f;
      any = any || keep[i];
    }
    if (!__any_sync(kAll, any)) continue;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t id = chunk.first + base + i * 32 + lane;
      const unsigned stays = __ballot_sync(kAll, keep[i] && wanted(a, row, id));
      if (stays >> lane & 1) {
        const int place = n + __popc(stays & ((1u << lane) - 1));
        words[place] = word[i].exact;
        ids[place] = static_cast<int32_t>(id);
      }
      n += __popc(stays);
    }
    __syncwarp();
  }
  // The threshold is worth raising as soon as there are some more than k.
  const int64_t full = a.k + a.k / 2 + kStep;
  if (n > (full < a.capacity / 2 ? full : a.capacity / 2)) n = compact(a, row, words, ids, n);
  if (lane == 0) a.count[unit] = n;
}

constexpr int kThreads = 256;

// A block for each row: the k-th lower bound over all its parts, and what may reach it, gathered at the
// front.
__global__ void __launch_bounds__(kThreads) shrink_kernel(TopkArgs a) {
  __shared__ int offset[kThreads / 32 + 1];
  const int64_t row = blockIdx.x;
  if (a.state[row] != kScreened) return;
  double* words = a.word + row * a.parts * a.capacity;
  int32_t* ids = a.id + row * a.parts * a.capacity;
  const int32_t* counts = a.count + row * a.parts;
  int64_t total = 0, longest = 0;
  for (int64_t part = 0; part < a.parts; ++part) {
    total += counts[part];
    longest = counts[part] > longest ? counts[part] : longest;
  }
  float tau = of_key(a.tau[row]);
  if (total >= a.k) {
    // The parts side by side, each as long as the longest: what lies behind the end of one counts as least.
    const auto key = [&](int64_t i) {
      const int64_t part = i / longest, at = i % longest;
      return at < counts[part] ? key_of(lower(word_at(words, part * a.capacity + at))) : 0u;
    };
    const float last = of_key(kth_key(key, longest * a.parts, a.k));
    tau = last > tau ? last : tau;
  }
  int64_t kept = 0;
  for (int64_t part = 0; part < a.parts; ++part) {
    for (int64_t base = 0; base < counts[part]; base += kThreads) {
      const int64_t i = base + threadIdx.x;
      const int64_t at = part * a.capacity + i;
      Word word{};
      int32_t id = 0;
      const bool there = i < counts[part];
      if (there) word = word_at(words, at), id = ids[at];
      const unsigned stays = __ballot_sync(kAll, there && may_reach(word, tau));
      if (threadIdx.x % 32 == 0) offset[threadIdx.x / 32 + 1] = __popc(stays);
      if (threadIdx.x == 0) offset[0] = 0;
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int warp = 0; warp < kThreads / 32; ++warp) offset[warp + 1] += offset[warp];
      }
      __syncthreads();
      const int lane = threadIdx.x % 32;
      if (stays >> lane & 1) {
        const int64_t place = kept + offset[threadIdx.x / 32] + __popc(stays & ((1u << lane) - 1));
        words[place] = word.exact;
        ids[place] = id;
      }
      kept += offset[kThreads / 32];
      __syncthreads();
    }
  }
  if (threadIdx.x == 0) a.found[row] = kept;
}

}  // namespace

void launch_begin(const TopkArgs& a, float open, cudaStream_t stream) {
  const int64_t blocks = (a.R * a.parts + kThreads - 1) / kThreads;
  launch("begin", begin_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, a, key_of(open));
}

void launch_filter(const TopkArgs& a, const FilterArgs& chunk, cudaStream_t stream) {
  const int64_t blocks = (a.R * a.parts + kWarps - 1) / kWarps;
  launch("filter", chunk.integers ? filter_kernel<int32_t> : filter_kernel<float>,
         static_cast<unsigned>(blocks), kWarps * 32, 0, stream, a, chunk);
}

void launch_shrink(const TopkArgs& a, cudaStream_t stream) {
  launch("shrink", shrink_kernel, static_cast<unsigned>(a.R), kThreads, 0, stream, a);
}

}  // namespace finescope::cuda
