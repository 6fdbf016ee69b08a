// sparse_decode and the sums of decode_residual: a warp for each token and strip of columns.
#include "cuda/rows.h"
#include "cuda/sparse.h"
#include "cuda/training.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The weighted weight rows of one token. A warp checks the latents of its token before it reads with them.
template <class T>
struct Token {
  const Accumulator<T>* value;
  const int64_t* index;
  const T* weight;
  int64_t stride;

  __device__ Token(const char* op, const void* values, const int64_t* indices, const Matrix& matrix,
                   int64_t b, int64_t K, int64_t F)
      : value(static_cast<const Accumulator<T>*>(values) + b * K),
        index(indices + b * K),
        weight(static_cast<const T*>(matrix.data)),
        stride(matrix.stride) {
    for (int64_t j = threadIdx.x % kWarp; j < K; j += kWarp) check_index(op, index[j], b, j, F);
    __syncwarp();
  }
  __device__ const T* operator()(int64_t j, Accumulator<T>* coefficient) const {
    *coefficient = value[j];
    return weight + index[j] * stride;
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads) decode_kernel(SparseDecodeArgs a, int64_t B, int64_t F) {
  using S = Strip<T, V>;
  using Acc = Accumulator<T>;
  const int64_t per_row = strips<T, V>(a.D);
  const Acc* bias = static_cast<const Acc*>(a.bias);
  for (int64_t task = first_warp(); task < B * per_row; task += warp_stride()) {
    const int64_t b = task / per_row;
    const int64_t column = task % per_row * S::kWidth + threadIdx.x % kWarp * V;
    const Token<T> token("sparse_decode", a.values, a.indices, a.weight, b, a.K, F);
    S strip;
    strip.clear();
    strip.add(0, a.K, column, a.D, token);
    T* out = static_cast<T*>(a.out) + b * a.D;
    strip.each(column, a.D, [&](int64_t d, Acc* sum) {
      for (int v = 0; v < V && bias != nullptr; ++v) sum[v] += bias[d + v];
      store_vector<T, V>(sum, out + d);
    });
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) residual_kernel(DecodeResidualArgs a, int64_t F) {
  using S = Strip<T, V>;
  const int64_t per_row = strips<T, V>(a.D);
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t task = first_warp(); task < a.B * per_row; task += warp_stride()) {
    const int64_t b = task / per_row;
    const int64_t column = task % per_row * S::kWidth + threadIdx.x % kWarp * V;
    const Token<T> token("decode_residual", a.values, a.indices, a.weight, b, a.K, F);
    const T* target = static_cast<const T*>(a.target.data) + b * a.target.stride;
    T* out = static_cast<T*>(a.out) + b * a.D;
    T* residual = static_cast<T*>(a.residual) + b * a.D;
    S strip;
    strip.clear();
    strip.add(0, a.k, column, a.D, token);
    strip.each(column, a.D, [&](int64_t d, T* sum) {
      for (int v = 0; v < V && bias != nullptr; ++v) sum[v] += bias[d + v];
      store_vector<T, V>(sum, out + d);
      for (int v = 0; v < V; ++v) sum[v] = target[d + v] - sum[v];
      store_vector<T, V>(sum, residual + d);
    });
    if (a.R == 1) continue;
    S rest;
    rest.clear();
    rest.add(a.k, a.K, column, a.D, token);
    rest.each(column, a.D, [&](int64_t d, T* sum) {
      // The first residual, which this thread has just written.
      for (int v = 0; v < V; ++v) sum[v] = residual[d + v] - sum[v];
      store_vector<T, V>(sum, residual + a.B * a.D + d);
    });
  }
}

}  // namespace

void launch_sparse_decode(const SparseDecodeArgs& a, int64_t B, int64_t F, cudaStream_t stream) {
  if (B == 0 || a.D == 0) return;
  with_type(a.weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int V = kWide<T>;
    const bool wide = aligned<T, V>(a.weight.data, a.weight.stride, a.D);
    const int64_t tasks = B * (wide ? strips<T, V>(a.D) : strips<T, 1>(a.D));
    launch("sparse_decode", wide ? decode_kernel<T, V> : decode_kernel<T, 1>, blocks_for(tasks, kWarps),
           kThreads, 0, stream, a, B, F);
  });
}

void launch_residual_sums(const DecodeResidualArgs& a, int64_t F, cudaStream_t stream) {
  if (a.B == 0 || a.D == 0) return;
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int V = kWide<T>;
    const bool wide = aligned<T, V>(a.weight.data, a.weight.stride, a.D);
    const int64_t tasks = a.B * (wide ? strips<T, V>(a.D) : strips<T, 1>(a.D));
    launch("decode_residual", wide ? residual_kernel<T, V> : residual_kernel<T, 1>, blocks_for(tasks, kWarps),
           kThreads, 0, stream, a, F);
  };
  a.dtype == DType::f64 ? run(static_cast<double*>(nullptr)) : run(static_cast<float*>(nullptr));
}

}  // namespace finescope::cuda
