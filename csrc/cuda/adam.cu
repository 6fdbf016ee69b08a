// sae_adam_step_: each element of parameter, gradient and moments crosses the bus once.
#include <cmath>

#include "cuda/rows.h"
#include "cuda/training.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
// A row's weights and gradients are kept in shared memory if both fit here: two blocks to a processor.
constexpr size_t kKept = size_t{96} << 10;

template <class Acc>
struct Rates {
  Acc rate1, beta2, rate2, step_size, eps;
  const double* scales;

  explicit Rates(const AdamArgs& a)
      : rate1(static_cast<Acc>(a.rate1)),
        beta2(static_cast<Acc>(a.beta2)),
        rate2(static_cast<Acc>(a.rate2)),
        step_size(static_cast<Acc>(a.step_size)),
        eps(static_cast<Acc>(a.eps)),
        scales(a.scales) {}

  // First thing in a kernel: where a graph is replayed, the scales are those of the replay's step.
  __device__ void read_scales() {
    if (scales == nullptr) return;
    step_size = static_cast<Acc>(scales[0]);
    eps = static_cast<Acc>(scales[1]);
  }

  // Every operation rounds by itself, as on the CPU.
  __device__ void update(Acc& w, Acc g, Acc& m, Acc& v) const {
    m += (g - m) * rate1;
    v = v * beta2 + g * rate2 * g;
    w -= m * step_size / (std::sqrt(v) + eps);
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(T* w, const T* g, T* m, T* v, int64_t n, Rates<Accumulator<T>> rates) {
  using Acc = Accumulator<T>;
  using Wide = Vector<T, V>;
  rates.read_scales();
  for (int64_t at = first_thread() * V; at < n; at += thread_stride() * V) {
    const Wide weights = *reinterpret_cast<const Wide*>(w + at),
               grads = *reinterpret_cast<const Wide*>(g + at), means = *reinterpret_cast<const Wide*>(m + at),
               squares = *reinterpret_cast<const Wide*>(v + at);
    Acc weight[V], mean[V], square[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      weight[i] = to_accumulator(weights.element[i]);
      mean[i] = to_accumulator(means.element[i]);
      square[i] = to_accumulator(squares.element[i]);
      rates.update(weight[i], to_accumulator(grads.element[i]), mean[i], square[i]);
    }
    store_vector<T, V>(weight, w + at);
    store_vector<T, V>(mean, m + at);
    store_vector<T, V>(square, v + at);
  }
}

// The fixed-order dot of two rows, to all threads of the block; the first half warp makes it.
template <class T>
__device__ inline double block_dot(const T* a, const T* b, int64_t D, double* out) {
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const double sum =
        sum_lanes(lane_dot<(sizeof(T) < 8)>(a, b, threadIdx.x < kLanes ? D : 0, threadIdx.x % kLanes));
    if (threadIdx.x == 0) *out = sum;
  }
  __syncthreads();
  return *out;
}

// A block for each row. kShared: the row's weights and gradients lie in shared memory in between.
template <class T, bool kShared>
__global__ void __launch_bounds__(kThreads)
    unit_norm_kernel(T* weights, const T* grads, T* means, T* squares, int64_t rows, int64_t D,
                     Rates<Accumulator<T>> rates) {
  using Acc = Accumulator<T>;
  rates.read_scales();
  FINESCOPE_SHARED(double, dot);
  T* const kept = reinterpret_cast<T*>(dot + 2);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* const w = weights + row * D;
    const T* const g = grads + row * D;
    T *const m = means + row * D, *const v = squares + row * D;
    T* const weight = kShared ? kept : w;
    const T* const grad = kShared ? kept + D : g;
    if (kShared) {
      __syncthreads();  // the row before may still be read
      for (int64_t d = threadIdx.x; d < D; d += kThreads) {
        kept[d] = w[d];
        kept[D + d] = g[d];
      }
    }
    const Acc along = static_cast<Acc>(block_dot(grad, weight, D, dot));
#pragma unroll 2
    for (int64_t d = threadIdx.x; d < D; d += kThreads) {
      Acc x = to_accumulator(weight[d]), mean = to_accumulator(m[d]), square = to_accumulator(v[d]);
      rates.update(x, to_accumulator(grad[d]) - x * along, mean, square);
      store(mean, m + d);
      store(square, v + d);
      store(x, weight + d);
    }
    const Acc norm = static_cast<Acc>(std::sqrt(block_dot(weight, weight, D, dot + 1)));
    for (int64_t d = threadIdx.x; d < D; d += kThreads) {
      const Acc x = to_accumulator(weight[d]);
      store(norm != 0 ? x / norm : x, w + d);
    }
  }
}

template <class T>
void launch_adam_of(const AdamArgs& a, int64_t count, cudaStream_t stream) {
  const Rates<Accumulator<T>> rates(a);
  T *w = static_cast<T*>(a.weight), *m = static_cast<T*>(a.mean), *v = static_cast<T*>(a.square);
  const T* g = static_cast<const T*>(a.grad);
  if (!a.unit_norm) {
    constexpr int V = kWide<T>;
    const bool wide = aligned<T, V>(w, V, count) && aligned<T, V>(g, V, count) &&
                      aligned<T, V>(m, V, count) && aligned<T, V>(v, V, count);
    launch("sae_adam_step_", wide ? plain_kernel<T, V> : plain_kernel<T, 1>,
           blocks_for(count / (wide ? V : 1), kThreads), kThreads, 0, stream, w, g, m, v, count, rates);
    return;
  }
  if (a.width == 0) return;
  const size_t bytes = 2 * static_cast<size_t>(a.width) * sizeof(T);
  const bool shared = bytes <= kKept;
  launch("sae_adam_step_", shared ? unit_norm_kernel<T, true> : unit_norm_kernel<T, false>,
         blocks_for(count, 1), kThreads, 2 * sizeof(double) + (shared ? bytes : 0), stream, w, g, m, v, count,
         a.width, rates);
}

}  // namespace

void launch_adam(const AdamArgs& a, int64_t count, cudaStream_t stream) {
  with_type(a.dtype,
            [&](auto* type) { launch_adam_of<std::remove_pointer_t<decltype(type)>>(a, count, stream); });
}

}  // namespace finescope::cuda
