// torch.ops.finescope on CUDA: sparse_decode.
#include "cuda/sparse.h"

#include <optional>

#include "bindings/cuda/device.h"

namespace finescope::cuda {
namespace {

Tensor sparse_decode(const Tensor& values, const Tensor& indices, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  const OnDevice device(weight);
  const int64_t B = indices.size(0), K = indices.size(1), F = weight.size(0), D = weight.size(1);
  const auto is_wide = [](const Tensor& t) { return t.scalar_type() == ScalarType::Double; };
  const bool wide = is_wide(values) || is_wide(weight) || (bias.has_value() && is_wide(*bias));
  const ScalarType acc = wide ? ScalarType::Double : ScalarType::Float;
  const Tensor index = finescope::packed(indices);
  const Rows rows(wide ? as(weight, acc) : weight, "sparse_decode", "weight");
  const Tensor coefficients = as(values, acc);
  std::optional<Tensor> added;
  if (bias.has_value()) added = as(*bias, acc);
  Tensor out = empty_like_options(weight, {B, D}, wide ? acc : weight.scalar_type());
  const SparseDecodeArgs args{coefficients.const_data_ptr(),
                              data<int64_t>(index),
                              rows.matrix,
                              added ? added->const_data_ptr() : nullptr,
                              out.mutable_data_ptr(),
                              K,
                              D};
  launch_sparse_decode(args, B, F, device.stream());
  return as(out, weight.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, FINESCOPE_CUDA_KEY, m)
{
  m.impl("sparse_decode", TORCH_BOX(&sparse_decode));
}

}  // namespace finescope::cuda
