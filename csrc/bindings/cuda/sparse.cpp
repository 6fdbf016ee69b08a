// torch.ops.finescope on CUDA: sparse_decode, the operations of its backward, and those of a training step.
#include "cuda/sparse.h"

#include <tuple>

#include "bindings/cuda/sort.h"
#include "bindings/operands.h"
#include "bindings/sparse_operands.h"
#include "cuda/training.h"

namespace finescope::cuda {
namespace {

Tensor sparse_decode(const Tensor& values, const Tensor& indices, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  const OnDevice device(weight);
  const DecodeOperands o(values, indices, weight, bias);
  launch_sparse_decode(o.args, o.B, o.F, device.stream());
  return o.result();
}

Tensor sampled_dot(const Tensor& rows, const Tensor& indices, const Tensor& weight) {
  const OnDevice device(weight);
  const DotOperands o(rows, indices, weight);
  launch_sampled_dot(o.args, o.B, o.F, device.stream());
  return o.out;
}

Tensor sparse_matmul(const Tensor& indptr, const Tensor& indices, const Tensor& values, const Tensor& panel) {
  const OnDevice device(panel);
  const char* op = MatmulOperands::op;
  check_dims(panel, 2, op, "panel");
  check_latents(panel.size(0), op);
  const CsrOperand codes(indptr, indices, values, panel.size(0), op, MatmulOperands::name);
  const MatmulOperands o(codes, panel);
  launch_sparse_matmul(o.args(codes), indices.size(0), device.stream());
  return o.out;
}

// The pairs of an index matrix by latent, then by position.
struct Segments {
  Tensor order, start;  // [B * K], [F + 1]

  Segments(Scatter op, const Tensor& index, int64_t F, const OnDevice& device) {
    const int64_t B = index.size(0), K = index.size(1);
    const Tensor keys =
        empty_like_options(index, {B * K}, narrow_keys(F) ? ScalarType::Int : ScalarType::Long);
    launch_latent_keys(op, data<int64_t>(index), B, K, F, keys.mutable_data_ptr(), device.stream());
    const auto [sorted, place] = stable_sort(keys);
    order = place;
    start = empty_like_options(index, {F + 1}, ScalarType::Long);
    launch_segment_starts(sorted.const_data_ptr(), B * K, F, static_cast<int64_t*>(start.mutable_data_ptr()),
                          device.stream());
  }
};

Tensor scatter_rows(const Tensor& values, const Tensor& indices, const Tensor& rows, int64_t num_latents) {
  const OnDevice device(rows);
  const ScatterRowsOperands o(values, indices, rows, num_latents);
  const Segments segments(Scatter::rows, o.index, o.F, device);
  const int64_t pairs = o.B * o.K;
  const Tensor row = empty_like_options(o.index, {pairs}, ScalarType::Long);
  const Tensor value = empty_like_options(o.coefficients, {pairs}, o.coefficients.scalar_type());
  launch_gather_pairs(data<int64_t>(segments.order), pairs, o.K, o.acc, o.coefficients.const_data_ptr(),
                      static_cast<int64_t*>(row.mutable_data_ptr()), value.mutable_data_ptr(),
                      device.stream());
  const ScatterRowsArgs args{data<int64_t>(segments.start), data<int64_t>(row),
                             value.const_data_ptr(),        o.x->matrix,
                             o.out.mutable_data_ptr(),      o.D};
  launch_scatter_rows(args, o.F, device.stream());
  return o.out;
}

Tensor scatter_values(const Tensor& values, const Tensor& indices, int64_t num_latents) {
  const OnDevice device(values);
  const ScatterValuesOperands o(values, indices, num_latents);
  const Segments segments(Scatter::values, o.index, o.F, device);
  const int64_t pairs = o.index.numel();
  const Tensor value = empty_like_options(o.added, {pairs}, o.added.scalar_type());
  launch_gather_pairs(data<int64_t>(segments.order), pairs, o.index.size(1), o.acc, o.added.const_data_ptr(),
                      nullptr, value.mutable_data_ptr(), device.stream());
  launch_segment_sums(data<int64_t>(segments.start), value.const_data_ptr(), o.acc, o.F,
                      o.sum.mutable_data_ptr(), device.stream());
  return o.sum;
}

void adam_step(Tensor parameter, const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq, int64_t step,
               double lr, double beta1, double beta2, double eps, bool unit_norm,
               const std::optional<Tensor>& scales) {
  const OnDevice device(parameter);
  AdamOperands o(parameter, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, unit_norm, scales);
  launch_adam(o.args, o.rows, device.stream());
  o.write_back();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> decode_residual(const Tensor& values, const Tensor& indices,
                                                           const Tensor& weight,
                                                           const std::optional<Tensor>& bias,
                                                           const Tensor& target, int64_t k) {
  const OnDevice device(weight);
  const DecodeResidualOperands o(values, indices, weight, bias, target, k);
  launch_residual_sums(o.args, o.F, device.stream());
  launch_residual_dots(o.args, device.stream());
  return {o.out, o.residual, o.dots, o.errors};
}

std::tuple<Tensor, Tensor, Tensor> weight_grads(const Tensor& grad_values, const Tensor& values,
                                                const Tensor& indices, const Tensor& x, const Tensor& grad,
                                                int64_t k, int64_t num_latents) {
  const OnDevice device(values);
  WeightGradOperands o(grad_values, values, indices, x, grad, k, num_latents);
  const Segments segments(Scatter::weight_grads, o.index, o.args.F, device);
  const int64_t pairs = o.index.numel();
  // Pair<dtype>: two numbers of 32 bits and two of the dtype.
  const int64_t width = o.args.dtype == DType::f64 ? 3 : 4;
  const Tensor sorted = empty_like_options(values, {pairs, width}, values.scalar_type());
  launch_training_pairs(data<int64_t>(segments.order), pairs, o.K, o.k, o.R > 1 ? o.args.B : 0, o.args.dtype,
                        o.first.const_data_ptr(), o.second.const_data_ptr(), sorted.mutable_data_ptr(),
                        device.stream());
  const Tensor rows = packed(o.x.tensor);
  o.args.start = data<int64_t>(segments.start);
  o.args.pairs = sorted.const_data_ptr();
  o.args.x = rows.const_data_ptr();
  o.args.grad = o.gradient.const_data_ptr();
  o.args.width = o.args.D;
  launch_weight_grads(o.args, device.stream());
  return {o.encoder, o.bias, o.decoder};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, FINESCOPE_CUDA_KEY, m)
{
  m.impl("sparse_decode", TORCH_BOX(&sparse_decode));
  m.impl("sampled_dot", TORCH_BOX(&sampled_dot));
  m.impl("sparse_matmul", TORCH_BOX(&sparse_matmul));
  m.impl("scatter_rows", TORCH_BOX(&scatter_rows));
  m.impl("scatter_values", TORCH_BOX(&scatter_values));
  m.impl("sae_adam_step_", TORCH_BOX(&adam_step));
  m.impl("decode_residual", TORCH_BOX(&decode_residual));
  m.impl("weight_grads", TORCH_BOX(&weight_grads));
}

}  // namespace finescope::cuda
