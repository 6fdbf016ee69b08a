// torch.ops.finescope on the CPU: the operations of a training step.
#include "cpu/training.h"

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>

#include "bindings/codes.h"

namespace finescope {
namespace {

// --- Adam

void check_like(const Tensor& t, const Tensor& parameter, const char* op, const char* name) {
  check(shape_text(t) == shape_text(parameter), op, ": ", name, " must have shape ", shape_text(parameter),
        " like parameter, got ", shape_text(t));
  check(t.scalar_type() == parameter.scalar_type(), op, ": ", name, " must be ",
        dtype_name(parameter.scalar_type()), " like parameter, not ", dtype_name(t.scalar_type()));
}

void adam_step(Tensor parameter, const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq, int64_t step,
               double lr, double beta1, double beta2, double eps, bool unit_norm) {
  const char* op = "sae_adam_step_";
  const DType dtype = float_dtype(parameter, op, "parameter");
  check_like(grad, parameter, op, "grad");
  check_like(exp_avg, parameter, op, "exp_avg");
  check_like(exp_avg_sq, parameter, op, "exp_avg_sq");
  check(step >= 1, op, ": step must be at least 1, got ", step);
  check(!unit_norm || parameter.dim() == 2, op, ": unit_norm needs a matrix [F, D], got shape ",
        shape_text(parameter));
  // Rows of another layout are updated in copies and written back.
  const Tensor w = packed(parameter), g = packed(grad), m = packed(exp_avg), v = packed(exp_avg_sq);
  const double root2 = std::sqrt(1 - std::pow(beta2, static_cast<double>(step)));
  const int64_t width = unit_norm ? parameter.size(1) : 1;
  const AdamArgs args{const_cast<void*>(w.const_data_ptr()),
                      g.const_data_ptr(),
                      const_cast<void*>(m.const_data_ptr()),
                      const_cast<void*>(v.const_data_ptr()),
                      dtype,
                      width,
                      unit_norm,
                      1 - beta1,
                      beta2,
                      1 - beta2,
                      lr * root2 / (1 - std::pow(beta1, static_cast<double>(step))),
                      eps * root2};
  const auto kernel = training_kernels().adam_step;
  const int64_t rows = unit_norm ? parameter.size(0) : parameter.numel();
  parallel(rows, grain(8 * width), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  if (!parameter.is_contiguous()) torch::stable::copy_(parameter, w);
  if (!exp_avg.is_contiguous()) torch::stable::copy_(exp_avg, m);
  if (!exp_avg_sq.is_contiguous()) torch::stable::copy_(exp_avg_sq, v);
}

// --- decoding with residuals

// The dtype that all float operands of an operation have to share.
DType one_dtype(const Tensor& first, const char* op) {
  const DType dtype = float_dtype(first, op, "values");
  check(dtype == DType::f32 || dtype == DType::f64, op, ": values must be float32 or float64, not ",
        dtype_name(first.scalar_type()));
  return dtype;
}

void check_dtype(const Tensor& t, const Tensor& first, const char* op, const char* name) {
  check(t.scalar_type() == first.scalar_type(), op, ": ", name, " must be ", dtype_name(first.scalar_type()),
        " like values, not ", dtype_name(t.scalar_type()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> decode_residual(const Tensor& values, const Tensor& indices,
                                                           const Tensor& weight,
                                                           const std::optional<Tensor>& bias,
                                                           const Tensor& target, int64_t k) {
  const char* op = "decode_residual";
  const Tensor index = index_matrix(indices, op), coefficients = packed(values);
  check_same_shape(values, index, op);
  const DType dtype = one_dtype(values, op);
  const Rows w(weight, op, "weight"), x(target, op, "target");
  check_dtype(weight, values, op, "weight");
  check_dtype(target, values, op, "target");
  const int64_t B = index.size(0), K = index.size(1), F = weight.size(0), D = weight.size(1);
  check(target.size(0) == B && target.size(1) == D, op, ": target ", shape_text(target), " must have shape [",
        B, ", ", D, "]");
  check(k >= 0 && k <= K, op, ": k must lie in 0..", K, ", got ", k);
  std::optional<Tensor> added;
  if (bias.has_value()) {
    check(bias->dim() == 1 && bias->size(0) == D, op, ": bias ", shape_text(*bias), " must have shape [", D,
          "]");
    check_dtype(*bias, values, op, "bias");
    added = packed(*bias);
  }
  check_indices(index, F, op);
  const int64_t R = k < K ? 2 : 1;
  const ScalarType type = values.scalar_type();
  Tensor out = empty_like_options(values, {B, D}, type),
         residual = empty_like_options(values, {R, B, D}, type),
         dots = empty_like_options(values, {R, B, K}, type),
         errors = empty_like_options(values, {R, B}, type);
  const DecodeResidualArgs args{dtype,
                                coefficients.const_data_ptr(),
                                data<int64_t>(index),
                                w.matrix,
                                added ? added->const_data_ptr() : nullptr,
                                x.matrix,
                                out.mutable_data_ptr(),
                                residual.mutable_data_ptr(),
                                dots.mutable_data_ptr(),
                                errors.mutable_data_ptr(),
                                R,
                                B,
                                K,
                                D,
                                k};
  const auto kernel = training_kernels().decode_residual;
  parallel(B, grain(3 * K * D), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return {out, residual, dots, errors};
}

// --- gradients of both matrices

// The pairs (b, j) by latent, then by position: a stable counting sort, whose result is unique.
template <class T>
struct SortedPairs {
  std::vector<int64_t> start;
  std::unique_ptr<Pair<T>[]> pairs;

  SortedPairs(const T* first, const T* second, const int64_t* indices, int64_t B, int64_t K, int64_t F,
              int64_t k, int64_t R)
      : start(F + 1, 0), pairs(new Pair<T>[static_cast<size_t>(B * K)]) {
    for (int64_t i = 0; i < B * K; ++i) ++start[indices[i] + 1];
    for (int64_t f = 0; f < F; ++f) start[f + 1] += start[f];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < K; ++j) {
        const int64_t i = b * K + j, other = R > 1 && j >= k ? B : 0;
        pairs[next[indices[i]]++] = {static_cast<uint32_t>(b), static_cast<uint32_t>(b + other), first[i],
                                     second[i]};
      }
    }
  }
};

// Columns per strip: as many as keep one strip of x and of all gradients in a second-level cache. Where
// latents have few pairs there is little to find there again, and starting on a latent anew for every strip
// costs more.
template <class T>
int64_t strip_width(int64_t rows, int64_t D, int64_t pairs_per_latent) {
  constexpr int64_t kCache = 768 << 10, kWidest = 512;
  const int64_t narrowest = pairs_per_latent < 8 ? 512 : 64;
  int64_t bytes = kWidest;
  while (bytes > narrowest && rows * bytes > kCache) bytes /= 2;
  return std::min<int64_t>(bytes / static_cast<int64_t>(sizeof(T)), std::max<int64_t>(D, 1));
}

// [rows, D] as strips [strips, rows, width].
template <class T>
std::unique_ptr<T[]> strips_of(const T* from, int64_t stride, int64_t rows, int64_t D, int64_t width) {
  const int64_t strips = (D + width - 1) / width;
  std::unique_ptr<T[]> out(new T[static_cast<size_t>(strips * rows * width)]);
  parallel(rows, grain(D), [&](int64_t begin, int64_t end) {
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t columns = std::min(width, D - s * width);
      T* strip = out.get() + s * rows * width;
      for (int64_t r = begin; r < end; ++r) {
        std::copy_n(from + r * stride + s * width, columns, strip + r * width);
      }
    }
  });
  return out;
}

template <class T>
void run_weight_grads(const Tensor& first, const Tensor& second, const int64_t* indices, const Matrix& x,
                      const Tensor& grad, int64_t k, WeightGradArgs args) {
  const int64_t B = first.size(0), K = first.size(1), F = args.F, D = args.D, R = grad.size(0);
  const SortedPairs<T> sorted(data<T>(first), data<T>(second), indices, B, K, F, k, R);
  args.start = sorted.start.data();
  args.pairs = sorted.pairs.get();
  args.B = B;
  args.rows = R * B;
  args.width = strip_width<T>(B + R * B, D, B * K / std::max<int64_t>(F, 1));
  const auto x_strips = strips_of<T>(static_cast<const T*>(x.data), x.stride, B, D, args.width);
  const auto grad_strips = strips_of<T>(data<T>(grad), D, R * B, D, args.width);
  args.x = x_strips.get();
  args.grad = grad_strips.get();
  const auto kernel = training_kernels().weight_grads;
  over_latents(args.start, F, grain(2 * D), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> weight_grads(const Tensor& grad_values, const Tensor& values,
                                                const Tensor& indices, const Tensor& x, const Tensor& grad,
                                                int64_t k, int64_t num_latents) {
  const char* op = "weight_grads";
  const Tensor index = index_matrix(indices, op);
  check_same_shape(values, index, op);
  const DType dtype = one_dtype(values, op);
  check(shape_text(grad_values) == shape_text(values), op, ": grad_values must have shape ",
        shape_text(values), " like values, got ", shape_text(grad_values));
  const Rows rows(x, op, "x");
  const int64_t B = index.size(0), K = index.size(1), D = x.size(1), F = num_latents;
  check(x.size(0) == B, op, ": x ", shape_text(x), " must have ", B, " rows");
  check_dims(grad, 3, op, "grad");
  const int64_t R = grad.size(0);
  check((R == 1 || R == 2) && grad.size(1) == B && grad.size(2) == D, op, ": grad must have shape [1 or 2, ",
        B, ", ", D, "], got ", shape_text(grad));
  check_dtype(grad_values, values, op, "grad_values");
  check_dtype(x, values, op, "x");
  check_dtype(grad, values, op, "grad");
  check(F >= 0, op, ": num_latents must not be negative, and is ", F);
  check(k >= 0 && k <= K, op, ": k must lie in 0..", K, ", got ", k);
  check(R * B <= int64_t{std::numeric_limits<uint32_t>::max()}, op, ": too many tokens in one batch: ", B);
  check_indices(index, F, op);
  const ScalarType type = values.scalar_type();
  Tensor encoder = empty_like_options(values, {F, D}, type),
         decoder = empty_like_options(values, {F, D}, type), bias = empty_like_options(values, {F}, type);
  prefer_huge_pages(encoder);
  prefer_huge_pages(decoder);
  const Tensor first = packed(grad_values), second = packed(values), gradient = packed(grad);
  WeightGradArgs args{};
  args.dtype = dtype;
  args.encoder = encoder.mutable_data_ptr();
  args.bias = bias.mutable_data_ptr();
  args.decoder = decoder.mutable_data_ptr();
  args.F = F;
  args.D = D;
  const auto run = dtype == DType::f64 ? run_weight_grads<double> : run_weight_grads<float>;
  run(first, second, data<int64_t>(index), rows.matrix, gradient, k, args);
  return {encoder, bias, decoder};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("sae_adam_step_", TORCH_BOX(&adam_step));
  m.impl("decode_residual", TORCH_BOX(&decode_residual));
  m.impl("weight_grads", TORCH_BOX(&weight_grads));
}

}  // namespace finescope
