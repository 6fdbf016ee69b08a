// torch.ops.finescope on the CPU: sparse_decode and the operations of its backward.
#include "cpu/sparse.h"

#include <optional>

#include "bindings/codes.h"

namespace finescope {
namespace {

Tensor sparse_decode(const Tensor& values, const Tensor& indices, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  const char* op = "sparse_decode";
  const Tensor index = index_matrix(indices, op);
  check_same_shape(values, index, op);
  float_dtype(values, op, "values");
  check_dims(weight, 2, op, "weight");
  const int64_t B = index.size(0), K = index.size(1), F = weight.size(0), D = weight.size(1);
  if (bias.has_value()) {
    check(bias->dim() == 1 && bias->size(0) == D, op, ": bias ", shape_text(*bias), " must have shape [", D,
          "]");
    float_dtype(*bias, op, "bias");
  }
  check_indices(index, F, op);
  // One float64 operand makes the sums float64; the result keeps the dtype of weight all the same.
  const auto is_wide = [](const Tensor& t) { return t.scalar_type() == ScalarType::Double; };
  const bool wide = is_wide(values) || is_wide(weight) || (bias.has_value() && is_wide(*bias));
  const ScalarType acc = wide ? ScalarType::Double : ScalarType::Float;
  const Rows rows(wide ? as(weight, acc) : weight, op, "weight");
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
  const auto kernel = sparse_kernels().sparse_decode;
  parallel(B, grain(K * D), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return as(out, weight.scalar_type());
}

Tensor sampled_dot(const Tensor& rows, const Tensor& indices, const Tensor& weight) {
  const char* op = "sampled_dot";
  const Tensor index = index_matrix(indices, op);
  const Rows x(rows, op, "rows"), w(weight, op, "weight");
  const int64_t B = index.size(0), K = index.size(1), F = weight.size(0), D = weight.size(1);
  check(rows.size(0) == B && rows.size(1) == D, op, ": rows ", shape_text(rows), " must have shape [", B,
        ", ", D, "]");
  check_indices(index, F, op);
  const bool f64 = x.matrix.dtype == DType::f64 || w.matrix.dtype == DType::f64;
  Tensor out = empty_like_options(rows, {B, K}, f64 ? ScalarType::Double : ScalarType::Float);
  const SampledDotArgs args{x.matrix, data<int64_t>(index), w.matrix, out.mutable_data_ptr(), f64, K, D};
  const auto kernel = sparse_kernels().sampled_dot;
  parallel(B, grain(K * D), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return out;
}

// The pairs (b, j) by latent, then by position: a stable counting sort, whose result is unique. T is the
// accumulator.
template <class T>
struct Segments {
  std::vector<int64_t> start, row;
  std::vector<T> value;

  Segments(const T* values, const int64_t* indices, int64_t B, int64_t K, int64_t F)
      : start(F + 1, 0), row(B * K), value(B * K) {
    for (int64_t i = 0; i < B * K; ++i) ++start[indices[i] + 1];
    for (int64_t f = 0; f < F; ++f) start[f + 1] += start[f];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = b * K; i < (b + 1) * K; ++i) {
        const int64_t slot = next[indices[i]]++;
        row[slot] = b;
        value[slot] = values[i];
      }
    }
  }
};

template <class T>
void scatter(const Tensor& values, const int64_t* indices, const Matrix& rows, int64_t B, int64_t K,
             int64_t F, int64_t D, void* out) {
  const Segments<T> pairs(data<T>(values), indices, B, K, F);
  const ScatterRowsArgs args{pairs.start.data(), pairs.row.data(), pairs.value.data(), rows, out, D};
  const auto kernel = sparse_kernels().scatter_rows;
  over_latents(pairs.start.data(), F, grain(D),
               [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

Tensor scatter_rows(const Tensor& values, const Tensor& indices, const Tensor& rows, int64_t num_latents) {
  const char* op = "scatter_rows";
  const Tensor index = index_matrix(indices, op);
  check_same_shape(values, index, op);
  float_dtype(values, op, "values");
  check_dims(rows, 2, op, "rows");
  const int64_t B = index.size(0), K = index.size(1), D = rows.size(1), F = num_latents;
  check(F >= 0, op, ": num_latents must not be negative, and is ", F);
  check(rows.size(0) == B, op, ": rows ", shape_text(rows), " must have ", B, " rows");
  check_indices(index, F, op);
  // float64 on either side makes the sums float64; 16-bit values and rows are summed, and returned, in
  // float32.
  const bool wide = values.scalar_type() == ScalarType::Double || rows.scalar_type() == ScalarType::Double;
  const ScalarType acc = wide ? ScalarType::Double : ScalarType::Float;
  const Rows x(wide ? as(rows, acc) : rows, op, "rows");
  const Tensor coefficients = as(values, acc);
  Tensor out = empty_like_options(rows, {F, D}, acc);
  prefer_huge_pages(out);
  if (wide) {
    scatter<double>(coefficients, data<int64_t>(index), x.matrix, B, K, F, D, out.mutable_data_ptr());
  } else {
    scatter<float>(coefficients, data<int64_t>(index), x.matrix, B, K, F, D, out.mutable_data_ptr());
  }
  return out;
}

template <class T>
void add_values(const T* values, const int64_t* indices, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[indices[i]] += values[i];
}

Tensor scatter_values(const Tensor& values, const Tensor& indices, int64_t num_latents) {
  const char* op = "scatter_values";
  const Tensor index = index_matrix(indices, op);
  check_same_shape(values, index, op);
  const DType dtype = float_dtype(values, op, "values");
  check(num_latents >= 0, op, ": num_latents must not be negative, and is ", num_latents);
  check_indices(index, num_latents, op);
  const ScalarType acc = accumulator(dtype);
  const Tensor added = as(values, acc);
  Tensor sum = empty_like_options(values, {num_latents}, acc);
  torch::stable::zero_(sum);
  // One pass of scalar adds over B * K values: it takes less time than splitting it would.
  if (dtype == DType::f64) {
    add_values(data<double>(added), data<int64_t>(index), index.numel(),
               static_cast<double*>(sum.mutable_data_ptr()));
  } else {
    add_values(data<float>(added), data<int64_t>(index), index.numel(),
               static_cast<float*>(sum.mutable_data_ptr()));
  }
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("sparse_decode", TORCH_BOX(&sparse_decode));
  m.impl("sampled_dot", TORCH_BOX(&sampled_dot));
  m.impl("scatter_rows", TORCH_BOX(&scatter_rows));
  m.impl("scatter_values", TORCH_BOX(&scatter_values));
}

}  // namespace finescope
