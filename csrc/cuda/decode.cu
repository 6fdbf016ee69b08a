// sparse_decode: weighted sums of weight rows, a block for each token.
#include <cstdio>

#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/sparse.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 128;

// Threads stand side by side in a row, so that its elements are read in whole lines; a thread adds its column
// in ascending j.
template <class T>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const Accumulator<T>* values, const int64_t* indices, const T* weight, int64_t stride,
                  const Accumulator<T>* bias, T* out, int64_t B, int64_t K, int64_t F, int64_t D) {
  using Acc = Accumulator<T>;
  for (int64_t b = blockIdx.x; b < B; b += gridDim.x) {
    const Acc* value = values + b * K;
    const int64_t* index = indices + b * K;
    for (int64_t j = threadIdx.x; j < K; j += kThreads) {
      if (index[j] >= 0 && index[j] < F) continue;
      printf("finescope: sparse_decode: indices holds %lld at [%lld, %lld], outside 0..%lld\n",
             static_cast<long long>(index[j]), static_cast<long long>(b), static_cast<long long>(j),
             static_cast<long long>(F - 1));
      __trap();
    }
    __syncthreads();
    for (int64_t d = threadIdx.x; d < D; d += kThreads) {
      Acc sum = 0;
#pragma unroll 8
      for (int64_t j = 0; j < K; ++j) {
        // Rounded twice, as on the CPU.
        sum += value[j] * static_cast<Acc>(to_double(weight[index[j] * stride + d]));
      }
      if (bias != nullptr) sum += bias[d];
      store(sum, out + b * D + d);
    }
  }
}

}  // namespace

void launch_sparse_decode(const SparseDecodeArgs& a, int64_t B, int64_t F, cudaStream_t stream) {
  if (B == 0 || a.D == 0) return;
  with_type(a.weight.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using Acc = Accumulator<T>;
    const unsigned blocks = static_cast<unsigned>(B < (1 << 20) ? B : (1 << 20));
    launch("sparse_decode", decode_kernel<T>, blocks, kThreads, 0, stream, static_cast<const Acc*>(a.values),
           a.indices, static_cast<const T*>(a.weight.data), a.weight.stride, static_cast<const Acc*>(a.bias),
           static_cast<T*>(a.out), B, a.K, F, a.D);
  });
}

}  // namespace finescope::cuda
