// Operands of the operations on codes (values and indices [B, K]) for every device: checked, in the types
// that sums are made in, with room for the results. What is in `indices` is for the backend to look at.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "bindings/room.h"
#include "kernels_training.h"

namespace finescope {

inline Tensor index_matrix(const Tensor& indices, const char* op) {
  check_dims(indices, 2, op, "indices");
  check(indices.scalar_type() == ScalarType::Long, op, ": indices must be int64, not ",
        dtype_name(indices.scalar_type()));
  return packed(indices);
}

inline void check_same_shape(const Tensor& values, const Tensor& indices, const char* op) {
  check(values.dim() == 2 && values.size(0) == indices.size(0) && values.size(1) == indices.size(1), op,
        ": values ", shape_text(values), " and indices ", shape_text(indices),
        " must have the same shape [B, K]");
}

inline void check_bias(const Tensor& bias, int64_t D, const char* op) {
  check(bias.dim() == 1 && bias.size(0) == D, op, ": bias ", shape_text(bias), " must have shape [", D, "]");
}

// One float64 operand makes sums float64.
inline bool is_wide(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double;
}

struct DecodeOperands {
  static constexpr const char* op = "sparse_decode";
  Tensor index, coefficients;
  std::optional<Rows> rows;
  std::optional<Tensor> added;
  Tensor out;
  ScalarType stored;
  int64_t B, K, F, D;
  SparseDecodeArgs args;

  DecodeOperands(const Tensor& values, const Tensor& indices, const Tensor& weight,
                 const std::optional<Tensor>& bias)
      : index(index_matrix(indices, op)), stored(weight.scalar_type()) {
    check_same_shape(values, index, op);
    float_dtype(values, op, "values");
    check_dims(weight, 2, op, "weight");
    B = index.size(0), K = index.size(1), F = weight.size(0), D = weight.size(1);
    check_device(weight, values, op, "values");
    check_device(weight, indices, op, "indices");
    if (bias.has_value()) {
      check_bias(*bias, D, op);
      float_dtype(*bias, op, "bias");
      check_device(weight, *bias, op, "bias");
    }
    // The result keeps the dtype of weight even where the sums are wider.
    const bool wide = is_wide(values) || is_wide(weight) || (bias.has_value() && is_wide(*bias));
    const ScalarType acc = wide ? ScalarType::Double : ScalarType::Float;
    rows.emplace(wide ? as(weight, acc) : weight, op, "weight");
    coefficients = as(values, acc);
    if (bias.has_value()) added = as(*bias, acc);
    out = empty_like_options(weight, {B, D}, wide ? acc : stored);
    args = {coefficients.const_data_ptr(),
            data<int64_t>(index),
            rows->matrix,
            added ? added->const_data_ptr() : nullptr,
            out.mutable_data_ptr(),
            K,
            D};
  }

  Tensor result() const { return as(out, stored); }
};

struct DotOperands {
  static constexpr const char* op = "sampled_dot";
  Tensor index;
  Rows x, w;
  Tensor out;
  int64_t B, K, F, D;
  SampledDotArgs args;

  DotOperands(const Tensor& rows, const Tensor& indices, const Tensor& weight)
      : index(index_matrix(indices, op)), x(rows, op, "rows"), w(weight, op, "weight") {
    B = index.size(0), K = index.size(1), F = weight.size(0), D = weight.size(1);
    check(rows.size(0) == B && rows.size(1) == D, op, ": rows ", shape_text(rows), " must have shape [", B,
          ", ", D, "]");
    check_device(rows, indices, op, "indices");
    check_device(rows, weight, op, "weight");
    const bool f64 = x.matrix.dtype == DType::f64 || w.matrix.dtype == DType::f64;
    out = empty_like_options(rows, {B, K}, f64 ? ScalarType::Double : ScalarType::Float);
    args = {x.matrix, data<int64_t>(index), w.matrix, out.mutable_data_ptr(), f64, K, D};
  }
};

struct ScatterRowsOperands {
  static constexpr const char* op = "scatter_rows";
  Tensor index, coefficients;
  std::optional<Rows> x;
  Tensor out;
  DType acc;
  int64_t B, K, F, D;

  ScatterRowsOperands(const Tensor& values, const Tensor& indices, const Tensor& rows, int64_t num_latents)
      : index(index_matrix(indices, op)) {
    check_same_shape(values, index, op);
    float_dtype(values, op, "values");
    check_dims(rows, 2, op, "rows");
    B = index.size(0), K = index.size(1), D = rows.size(1), F = num_latents;
    check(F >= 0, op, ": num_latents must not be negative, and is ", F);
    check(rows.size(0) == B, op, ": rows ", shape_text(rows), " must have ", B, " rows");
    check_device(rows, values, op, "values");
    check_device(rows, indices, op, "indices");
    // 16-bit values and rows are summed, and returned, in float32.
    const bool wide = is_wide(values) || is_wide(rows);
    const ScalarType type = wide ? ScalarType::Double : ScalarType::Float;
    acc = wide ? DType::f64 : DType::f32;
    x.emplace(wide ? as(rows, type) : rows, op, "rows");
    coefficients = as(values, type);
    out = gradient_room(rows, {F, D}, type);
  }
};

struct ScatterValuesOperands {
  static constexpr const char* op = "scatter_values";
  Tensor index, added, sum;
  DType acc;
  int64_t F;

  ScatterValuesOperands(const Tensor& values, const Tensor& indices, int64_t num_latents)
      : index(index_matrix(indices, op)), F(num_latents) {
    check_same_shape(values, index, op);
    const DType dtype = float_dtype(values, op, "values");
    check(F >= 0, op, ": num_latents must not be negative, and is ", F);
    check_device(values, indices, op, "indices");
    acc = dtype == DType::f64 ? DType::f64 : DType::f32;
    added = as(values, accumulator(dtype));
    sum = empty_like_options(values, {F}, accumulator(dtype));
  }
};

inline Reduce reduction(const std::string& name) {
  if (name == "mean") return Reduce::mean;
  if (name == "max") return Reduce::max;
  if (name == "sum") return Reduce::sum;
  if (name == "sqrt_mean") return Reduce::sqrt_mean;
  if (name == "count") return Reduce::count;
  fail("reduce must be one of 'mean', 'max', 'sum', 'sqrt_mean', 'count', got '", name, "'");
}

struct PoolOperands {
  static constexpr const char* op = "pool_codes";
  Tensor starts, index, coefficients;
  Tensor out_values, out_indices;
  int64_t B, N;
  PoolArgs args;

  PoolOperands(const Tensor& values, const Tensor& indices, const Tensor& offsets, const std::string& reduce,
               int64_t keep) {
    check_dims(values, 2, op, "values");
    float_dtype(values, op, "values");
    check(indices.scalar_type() == ScalarType::Long && offsets.scalar_type() == ScalarType::Long, op,
          ": indices and offsets must be int64");
    check(shape_text(indices) == shape_text(values), op, ": indices must have shape ", shape_text(values),
          " like values, got ", shape_text(indices));
    check(offsets.dim() == 1 && offsets.size(0) >= 1, op, ": offsets must have shape [N+1], got ",
          shape_text(offsets));
    check(keep >= 0, op, ": keep must be at least 0, got ", keep);
    check_device(values, indices, op, "indices");
    check_device(values, offsets, op, "offsets");
    const Reduce reduced = reduction(reduce);
    starts = packed(offsets), index = packed(indices);
    B = values.size(0), N = offsets.size(0) - 1;
    const bool f64 = is_wide(values);
    coefficients = as(values, f64 ? ScalarType::Double : ScalarType::Float);
    out_values = empty_like_options(values, {N, keep}, ScalarType::Float);
    out_indices = empty_like_options(values, {N, keep}, ScalarType::Long);
    args = {coefficients.const_data_ptr(),
            data<int64_t>(index),
            f64,
            data<int64_t>(starts),
            values.size(1),
            reduced,
            keep,
            static_cast<float*>(out_values.mutable_data_ptr()),
            static_cast<int64_t*>(out_indices.mutable_data_ptr())};
  }
};

// --- training

struct AdamOperands {
  static constexpr const char* op = "sae_adam_step_";
  // Rows of another layout are updated in copies and written back.
  Tensor parameter, exp_avg, exp_avg_sq;
  Tensor w, g, m, v;
  int64_t rows;
  AdamArgs args;

  AdamOperands(const Tensor& parameter_, const Tensor& grad, const Tensor& exp_avg_,
               const Tensor& exp_avg_sq_, int64_t step, double lr, double beta1, double beta2, double eps,
               bool unit_norm, const std::optional<Tensor>& scales)
      : parameter(parameter_), exp_avg(exp_avg_), exp_avg_sq(exp_avg_sq_) {
    const DType dtype = float_dtype(parameter, op, "parameter");
    check_like(grad, "grad");
    check_like(exp_avg, "exp_avg");
    check_like(exp_avg_sq, "exp_avg_sq");
    check(step >= 1, op, ": step must be at least 1, got ", step);
    check(!unit_norm || parameter.dim() == 2, op, ": unit_norm needs a matrix [F, D], got shape ",
          shape_text(parameter));
    if (scales) {
      check(scales->scalar_type() == ScalarType::Double && scales->dim() == 1 && scales->size(0) == 2 &&
                scales->is_contiguous(),
            op, ": scales must be contiguous float64 [2] (step size, eps), got ",
            dtype_name(scales->scalar_type()), " ", shape_text(*scales));
      check_device(parameter, *scales, op, "scales");
    }
    w = packed(parameter), g = packed(grad), m = packed(exp_avg), v = packed(exp_avg_sq);
    const double root2 = std::sqrt(1 - std::pow(beta2, static_cast<double>(step)));
    rows = unit_norm ? parameter.size(0) : parameter.numel();
    args = {const_cast<void*>(w.const_data_ptr()),
            g.const_data_ptr(),
            const_cast<void*>(m.const_data_ptr()),
            const_cast<void*>(v.const_data_ptr()),
            dtype,
            unit_norm ? parameter.size(1) : 1,
            unit_norm,
            1 - beta1,
            beta2,
            1 - beta2,
            lr * root2 / (1 - std::pow(beta1, static_cast<double>(step))),
            eps * root2,
            scales ? data<double>(*scales) : nullptr};
  }

  void write_back() {
    if (!parameter.is_contiguous()) torch::stable::copy_(parameter, w);
    if (!exp_avg.is_contiguous()) torch::stable::copy_(exp_avg, m);
    if (!exp_avg_sq.is_contiguous()) torch::stable::copy_(exp_avg_sq, v);
  }

 private:
  void check_like(const Tensor& t, const char* name) const {
    check(shape_text(t) == shape_text(parameter), op, ": ", name, " must have shape ", shape_text(parameter),
          " like parameter, got ", shape_text(t));
    check(t.scalar_type() == parameter.scalar_type(), op, ": ", name, " must be ",
          dtype_name(parameter.scalar_type()), " like parameter, not ", dtype_name(t.scalar_type()));
    check_device(parameter, t, op, name);
  }
};

// The dtype that all float operands of an operation have to share.
inline DType one_dtype(const Tensor& first, const char* op) {
  const DType dtype = float_dtype(first, op, "values");
  check(dtype == DType::f32 || dtype == DType::f64, op, ": values must be float32 or float64, not ",
        dtype_name(first.scalar_type()));
  return dtype;
}

inline void check_with_values(const Tensor& t, const Tensor& values, const char* op, const char* name) {
  check(t.scalar_type() == values.scalar_type(), op, ": ", name, " must be ",
        dtype_name(values.scalar_type()), " like values, not ", dtype_name(t.scalar_type()));
  check_device(values, t, op, name);
}

struct DecodeResidualOperands {
  static constexpr const char* op = "decode_residual";
  Tensor index, coefficients;
  Rows w, x;
  std::optional<Tensor> added;
  Tensor out, residual, dots, errors;
  int64_t F;
  DecodeResidualArgs args;

  DecodeResidualOperands(const Tensor& values, const Tensor& indices, const Tensor& weight,
                         const std::optional<Tensor>& bias, const Tensor& target, int64_t k)
      : index(index_matrix(indices, op)),
        coefficients(packed(values)),
        w(weight, op, "weight"),
        x(target, op, "target"),
        F(weight.size(0)) {
    check_same_shape(values, index, op);
    const DType dtype = one_dtype(values, op);
    check_with_values(weight, values, op, "weight");
    check_with_values(target, values, op, "target");
    check_device(values, indices, op, "indices");
    const int64_t B = index.size(0), K = index.size(1), D = weight.size(1);
    check(target.size(0) == B && target.size(1) == D, op, ": target ", shape_text(target),
          " must have shape [", B, ", ", D, "]");
    check(k >= 0 && k <= K, op, ": k must lie in 0..", K, ", got ", k);
    if (bias.has_value()) {
      check_bias(*bias, D, op);
      check_with_values(*bias, values, op, "bias");
      added = packed(*bias);
    }
    const int64_t R = k < K ? 2 : 1;
    const ScalarType type = values.scalar_type();
    out = empty_like_options(values, {B, D}, type);
    residual = empty_like_options(values, {R, B, D}, type);
    dots = empty_like_options(values, {R, B, K}, type);
    errors = empty_like_options(values, {R, B}, type);
    args = {dtype,
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
  }
};

// args lacks the sorted pairs and the layout that the backend reads x and grad in.
struct WeightGradOperands {
  static constexpr const char* op = "weight_grads";
  Tensor index, first, second;
  Rows x;
  Tensor gradient;
  Tensor encoder, bias, decoder;
  int64_t K, R, k;
  WeightGradArgs args{};

  WeightGradOperands(const Tensor& grad_values, const Tensor& values, const Tensor& indices,
                     const Tensor& x_rows, const Tensor& grad, int64_t k_, int64_t num_latents)
      : index(index_matrix(indices, op)), x(x_rows, op, "x"), k(k_) {
    check_same_shape(values, index, op);
    args.dtype = one_dtype(values, op);
    check(shape_text(grad_values) == shape_text(values), op, ": grad_values must have shape ",
          shape_text(values), " like values, got ", shape_text(grad_values));
    const int64_t B = index.size(0), D = x_rows.size(1), F = num_latents;
    K = index.size(1);
    check(x_rows.size(0) == B, op, ": x ", shape_text(x_rows), " must have ", B, " rows");
    check_dims(grad, 3, op, "grad");
    R = grad.size(0);
    check((R == 1 || R == 2) && grad.size(1) == B && grad.size(2) == D, op,
          ": grad must have shape [1 or 2, ", B, ", ", D, "], got ", shape_text(grad));
    check_with_values(grad_values, values, op, "grad_values");
    check_with_values(x_rows, values, op, "x");
    check_with_values(grad, values, op, "grad");
    check_device(values, indices, op, "indices");
    check(F >= 0, op, ": num_latents must not be negative, and is ", F);
    check(k >= 0 && k <= K, op, ": k must lie in 0..", K, ", got ", k);
    check(R * B <= int64_t{std::numeric_limits<uint32_t>::max()}, op, ": too many tokens in one batch: ", B);
    first = packed(grad_values), second = packed(values), gradient = packed(grad);
    const ScalarType type = values.scalar_type();
    encoder = gradient_room(values, {F, D}, type);
    decoder = gradient_room(values, {F, D}, type);
    bias = empty_like_options(values, {F}, type);
    args.encoder = encoder.mutable_data_ptr();
    args.bias = bias.mutable_data_ptr();
    args.decoder = decoder.mutable_data_ptr();
    args.B = B;
    args.rows = R * B;
    args.F = F;
    args.D = D;
  }
};

}  // namespace finescope
