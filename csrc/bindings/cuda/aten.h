// The operations of torch that the CUDA bindings call, through its dispatcher.
#pragma once

#include <array>

#include "bindings/cuda/device.h"

#if defined(FINESCOPE_CUDA_ON_CPU)
#include <map>
#include <set>

namespace cuda_on_cpu {

// Products so far, and those that fail, by the dtype of their rows.
inline std::map<int, int64_t> multiplied;
inline std::set<int> refused;

}  // namespace cuda_on_cpu
#endif

namespace finescope::cuda {

// out = a @ b.T for rows a [n, d] and b [m, d]: float32 for float16, bfloat16 and float32 rows; int32 for
// int8 ones, of which n > 16 and d and m are multiples of 8. The overloads with `out` are what autocast
// leaves alone. The status is torch's.
inline AOTITorchError multiply(const Tensor& a, Tensor& b, Tensor& out) {
  using torch::stable::detail::from;
  const bool integers = a.scalar_type() == ScalarType::Char;
#if defined(FINESCOPE_CUDA_ON_CPU)
  const int type = static_cast<int>(a.scalar_type());
  if (cuda_on_cpu::refused.count(type) > 0) return TORCH_FAILURE;
  // As torch does on CUDA.
  if (integers && (a.size(0) <= 16 || a.size(1) % 8 != 0 || b.size(0) % 8 != 0)) return TORCH_FAILURE;
  ++cuda_on_cpu::multiplied[type];
  // What float64 adds up is exact for integers.
  const ScalarType wide_type = integers ? ScalarType::Double : ScalarType::Float;
  const Tensor left = as(a, wide_type);
  Tensor wide = as(b, wide_type);
  const Tensor right = torch::stable::transpose(wide, 0, 1);
  Tensor product = integers ? empty_like_options(out, {out.size(0), out.size(1)}, wide_type) : out;
  std::array<StableIValue, 3> stack{from(left), from(right), from(product)};
  must(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION), "multiply");
  if (integers) torch::stable::copy_(out, product);
#else
  const Tensor right = torch::stable::transpose(b, 0, 1);
  std::array<StableIValue, 4> stack{from(a), from(right), from(out), StableIValue{}};
  const bool widens = !integers && a.scalar_type() != ScalarType::Float;
  if (widens) stack = {from(a), from(right), from(ScalarType::Float), from(out)};
  const AOTITorchError error = torch_call_dispatcher(
      integers ? "aten::_int_mm" : "aten::mm", widens ? "dtype_out" : "out", stack.data(), TORCH_ABI_VERSION);
  if (error != TORCH_SUCCESS) return error;
#endif
  torch::stable::detail::to<Tensor>(stack[0]);  // releases what the dispatcher returned
  return TORCH_SUCCESS;
}

}  // namespace finescope::cuda
