// Sums over the pairs of each latent: scatter_rows, scatter_values, weight_grads.
//
// The pairs are sorted by latent once; then each sum belongs to one thread, which adds its terms in their
// order. Nothing is added atomically, so nothing depends on timing. A latent that every token holds takes as
// long as one column of it takes: its columns are spread over warps, as those of any other latent.
#include "cuda/rows.h"
#include "cuda/sparse.h"
#include "cuda/training.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Named on the device: its printf cannot read the host's words.
__device__ inline const char* name_of(Scatter op) {
  return op == Scatter::rows ? "scatter_rows" : op == Scatter::values ? "scatter_values" : "weight_grads";
}

template <class Key>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(Scatter op, const int64_t* indices, int64_t pairs, int64_t K, int64_t F, Key* keys) {
  for (int64_t i = first_thread(); i < pairs; i += thread_stride()) {
    check_index(name_of(op), indices[i], i / K, i % K, F);
    keys[i] = static_cast<Key>(indices[i]);
  }
}

template <class Key>
__global__ void __launch_bounds__(kThreads)
    starts_kernel(const Key* keys, int64_t pairs, int64_t F, int64_t* start) {
  for (int64_t f = first_thread(); f <= F; f += thread_stride()) {
    int64_t low = 0, high = pairs;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (static_cast<int64_t>(keys[middle]) < f) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    start[f] = low;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const int64_t* order, int64_t pairs, int64_t K, const T* values, int64_t* row, T* value) {
  for (int64_t p = first_thread(); p < pairs; p += thread_stride()) {
    if (row != nullptr) row[p] = order[p] / K;
    value[p] = values[order[p]];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    training_pairs_kernel(const int64_t* order, int64_t pairs, int64_t K, int64_t k, int64_t later,
                          const T* first, const T* second, Pair<T>* out) {
  for (int64_t p = first_thread(); p < pairs; p += thread_stride()) {
    const int64_t i = order[p], b = i / K, other = i % K >= k ? later : 0;
    out[p] = {static_cast<uint32_t>(b), static_cast<uint32_t>(b + other), first[i], second[i]};
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) scatter_kernel(ScatterRowsArgs a, int64_t F) {
  using S = Strip<T, V>;
  using Acc = Accumulator<T>;
  const int64_t per_row = strips<T, V>(a.D);
  const T* rows = static_cast<const T*>(a.rows.data);
  const Acc* value = static_cast<const Acc*>(a.value);
  for (int64_t task = first_warp(); task < F * per_row; task += warp_stride()) {
    const int64_t f = task / per_row;
    const int64_t column = task % per_row * S::kWidth + threadIdx.x % kWarp * V;
    S strip;
    strip.clear();
    strip.add(a.start[f], a.start[f + 1], column, a.D, [&](int64_t i, Acc* coefficient) {
      *coefficient = value[i];
      return rows + a.row[i] * a.rows.stride;
    });
    Acc* out = static_cast<Acc*>(a.out) + f * a.D;
    strip.each(column, a.D, [&](int64_t d, Acc* sum) { store_vector<Acc, V>(sum, out + d); });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    segment_sums_kernel(const int64_t* start, const T* value, int64_t F, T* out) {
  for (int64_t f = first_thread(); f < F; f += thread_stride()) {
    T sum = 0;
    const int64_t end = start[f + 1];
#pragma unroll 8
    for (int64_t p = start[f]; p < end; ++p) sum += value[p];
    out[f] = sum;
  }
}

// Tasks: the encoder's rows and the decoder's rows in turn. A warp that has the first columns of an encoder
// row sums the bias as well, from the pairs it reads anyway.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) weight_grads_kernel(WeightGradArgs a) {
  using S = Strip<T, V>;
  const int64_t per_row = strips<T, V>(a.D);
  const Pair<T>* pairs = static_cast<const Pair<T>*>(a.pairs);
  for (int64_t task = first_warp(); task < a.F * per_row * 2; task += warp_stride()) {
    const int64_t f = task / (per_row * 2), part = task % (per_row * 2);
    const bool encoder = part < per_row;
    const int64_t strip_number = encoder ? part : part - per_row;
    const int64_t column = strip_number * S::kWidth + threadIdx.x % kWarp * V;
    const T* rows = static_cast<const T*>(encoder ? a.x : a.grad);
    const int64_t begin = a.start[f], end = a.start[f + 1];
    S strip;
    strip.clear();
    strip.add(begin, end, column, a.D, [&](int64_t i, T* coefficient) {
      const Pair<T> pair = pairs[i];
      *coefficient = encoder ? pair.first : pair.second;
      return rows + (encoder ? pair.row : pair.grad_row) * a.width;
    });
    T* out = static_cast<T*>(encoder ? a.encoder : a.decoder) + f * a.D;
    strip.each(column, a.D, [&](int64_t d, T* sum) { store_vector<T, V>(sum, out + d); });
    if (part == 0 && threadIdx.x % kWarp == 0) {
      T bias = 0;
#pragma unroll 8
      for (int64_t i = begin; i < end; ++i) bias += pairs[i].first;
      static_cast<T*>(a.bias)[f] = bias;
    }
  }
}

template <class Body>
void with_accumulator(DType dtype, const Body& body) {
  dtype == DType::f64 ? body(static_cast<double*>(nullptr)) : body(static_cast<float*>(nullptr));
}

template <class Body>
void with_key(int64_t F, const Body& body) {
  narrow_keys(F) ? body(static_cast<int32_t*>(nullptr)) : body(static_cast<int64_t*>(nullptr));
}

}  // namespace

void launch_latent_keys(Scatter op, const int64_t* indices, int64_t B, int64_t K, int64_t F, void* keys,
                        cudaStream_t stream) {
  with_key(F, [&](auto* type) {
    using Key = std::remove_pointer_t<decltype(type)>;
    launch("latent keys", keys_kernel<Key>, blocks_for(B * K, kThreads), kThreads, 0, stream, op, indices,
           B * K, K, F, static_cast<Key*>(keys));
  });
}

void launch_segment_starts(const void* keys, int64_t pairs, int64_t F, int64_t* start, cudaStream_t stream) {
  with_key(F, [&](auto* type) {
    using Key = std::remove_pointer_t<decltype(type)>;
    launch("segment starts", starts_kernel<Key>, blocks_for(F + 1, kThreads), kThreads, 0, stream,
           static_cast<const Key*>(keys), pairs, F, start);
  });
}

void launch_gather_pairs(const int64_t* order, int64_t pairs, int64_t K, DType dtype, const void* values,
                         int64_t* row, void* value, cudaStream_t stream) {
  with_accumulator(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("gather pairs", gather_kernel<T>, blocks_for(pairs, kThreads), kThreads, 0, stream, order, pairs,
           K, static_cast<const T*>(values), row, static_cast<T*>(value));
  });
}

void launch_training_pairs(const int64_t* order, int64_t pairs, int64_t K, int64_t k, int64_t later,
                           DType dtype, const void* first, const void* second, void* out,
                           cudaStream_t stream) {
  with_accumulator(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("weight_grads", training_pairs_kernel<T>, blocks_for(pairs, kThreads), kThreads, 0, stream, order,
           pairs, K, k, later, static_cast<const T*>(first), static_cast<const T*>(second),
           static_cast<Pair<T>*>(out));
  });
}

void launch_scatter_rows(const ScatterRowsArgs& a, int64_t F, cudaStream_t stream) {
  if (a.D == 0) return;
  with_type(a.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    // Results are wider than 16-bit rows: as many elements as fit one store of theirs.
    constexpr int V = kWide<Accumulator<T>>;
    const bool wide = aligned<T, V>(a.rows.data, a.rows.stride, a.D);
    const int64_t tasks = F * (wide ? strips<T, V>(a.D) : strips<T, 1>(a.D));
    launch("scatter_rows", wide ? scatter_kernel<T, V> : scatter_kernel<T, 1>, blocks_for(tasks, kWarps),
           kThreads, 0, stream, a, F);
  });
}

void launch_segment_sums(const int64_t* start, const void* value, DType dtype, int64_t F, void* out,
                         cudaStream_t stream) {
  with_accumulator(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("scatter_values", segment_sums_kernel<T>, blocks_for(F, kThreads), kThreads, 0, stream, start,
           static_cast<const T*>(value), F, static_cast<T*>(out));
  });
}

void launch_weight_grads(const WeightGradArgs& a, cudaStream_t stream) {
  with_accumulator(a.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int V = kWide<T>;
    const bool wide = aligned<T, V>(a.x, a.width, a.D) && aligned<T, V>(a.grad, a.width, a.D);
    const int64_t tasks = a.F * 2 * (wide ? strips<T, V>(a.D) : strips<T, 1>(a.D));
    launch("weight_grads", wide ? weight_grads_kernel<T, V> : weight_grads_kernel<T, 1>,
           blocks_for(tasks, kWarps), kThreads, 0, stream, a);
  });
}

}  // namespace finescope::cuda
