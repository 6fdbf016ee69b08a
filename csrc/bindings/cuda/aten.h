// The operations of torch that the CUDA bindings call, through its dispatcher.
#pragma once

#include <array>

#include "bindings/cuda/device.h"

namespace finescope::cuda {

// out = a @ b.T in float32, for bfloat16 or float32 rows a [n, d] and b [m, d]. The overloads with `out` are
// what autocast leaves alone.
inline void multiply(const Tensor& a, Tensor& b, Tensor& out) {
  using torch::stable::detail::from;
#if defined(FINESCOPE_CUDA_ON_CPU)
  const Tensor left = as(a, ScalarType::Float);
  Tensor wide = as(b, ScalarType::Float);
  const Tensor right = torch::stable::transpose(wide, 0, 1);
#else
  const Tensor& left = a;
  const Tensor right = torch::stable::transpose(b, 0, 1);
  if (a.scalar_type() != ScalarType::Float) {
    std::array<StableIValue, 4> stack{from(left), from(right), from(ScalarType::Float), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // releases what the dispatcher returned
    return;
  }
#endif
  std::array<StableIValue, 3> stack{from(left), from(right), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace finescope::cuda
