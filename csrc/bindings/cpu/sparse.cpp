// torch.ops.finescope on the CPU: sparse_decode and the operations of its backward.
#include "cpu/codes/sparse.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/cpu/codes.h"
#include "bindings/cpu/rows.h"

namespace finescope {
namespace {

Tensor sparse_decode(const Tensor& values, const Tensor& indices, const Tensor& weight,
                     const std::optional<Tensor>& bias) {
  const DecodeOperands o(values, indices, weight, bias);
  check_indices(o.index, o.F, o.op);
  const auto kernel = sparse_kernels().sparse_decode;
  parallel(o.B, grain(o.K * o.D), [&](int64_t begin, int64_t end) { kernel(o.args, begin, end); });
  return o.result();
}

Tensor sampled_dot(const Tensor& rows, const Tensor& indices, const Tensor& weight) {
  const DotOperands o(rows, indices, weight);
  check_indices(o.index, o.F, o.op);
  const auto kernel = sparse_kernels().sampled_dot;
  parallel(o.B, grain(o.K * o.D), [&](int64_t begin, int64_t end) { kernel(o.args, begin, end); });
  return o.out;
}

// The pairs (b, j) by latent, then by position: a stable counting sort, whose result is unique. T is the
// accumulator.
template <class T>
struct Segments {
  std::vector<int64_t> start, row, position;
  std::vector<T> value;

  Segments(const T* values, const int64_t* indices, int64_t B, int64_t K, int64_t F)
      : start(F + 1, 0), row(B * K), position(B * K), value(B * K) {
    for (int64_t i = 0; i < B * K; ++i) ++start[indices[i] + 1];
    for (int64_t f = 0; f < F; ++f) start[f + 1] += start[f];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = b * K; i < (b + 1) * K; ++i) {
        const int64_t slot = next[indices[i]]++;
        row[slot] = b;
        position[slot] = i;
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
  over_runs(pairs.start.data(), F, grain(D), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

Tensor scatter_rows(const Tensor& values, const Tensor& indices, const Tensor& rows, int64_t num_latents) {
  const ScatterRowsOperands o(values, indices, rows, num_latents);
  check_indices(o.index, o.F, o.op);
  prefer_huge_pages(o.out);
  const auto run = o.acc == DType::f64 ? scatter<double> : scatter<float>;
  run(o.coefficients, data<int64_t>(o.index), o.x->matrix, o.B, o.K, o.F, o.D, o.out.mutable_data_ptr());
  return o.out;
}

template <class T>
void run_decode_grads(const ScatterRowsOperands& o, const DotOperands& dots) {
  const Segments<T> pairs(data<T>(o.coefficients), data<int64_t>(o.index), o.B, o.K, o.F);
  const DecodeGradsArgs args{
      {pairs.start.data(), pairs.row.data(), pairs.value.data(), o.x->matrix, o.out.mutable_data_ptr(), o.D},
      pairs.position.data(),
      dots.w.matrix,
      dots.out.mutable_data_ptr()};
  const auto kernel = sparse_kernels().decode_grads;
  over_runs(pairs.start.data(), o.F, grain(2 * o.D),
            [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

std::tuple<Tensor, Tensor> decode_grads(const Tensor& values, const Tensor& indices, const Tensor& weight,
                                        const Tensor& grad) {
  const DotOperands dots(grad, indices, weight);
  const ScatterRowsOperands o(values, indices, grad, dots.F);
  // Mixed dtypes are rare: they take both passes.
  if (o.x->matrix.dtype != dots.w.matrix.dtype || (o.acc == DType::f64) != dots.args.f64_out) {
    return {sampled_dot(grad, indices, weight), scatter_rows(values, indices, grad, dots.F)};
  }
  check_indices(o.index, o.F, "decode_grads");
  prefer_huge_pages(o.out);
  if (o.acc == DType::f64) {
    run_decode_grads<double>(o, dots);
  } else {
    run_decode_grads<float>(o, dots);
  }
  return {dots.out, o.out};
}

template <class T>
void add_values(const T* values, const int64_t* indices, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) out[indices[i]] += values[i];
}

Tensor scatter_values(const Tensor& values, const Tensor& indices, int64_t num_latents) {
  ScatterValuesOperands o(values, indices, num_latents);
  check_indices(o.index, o.F, o.op);
  torch::stable::zero_(o.sum);
  // One pass of scalar adds over B * K values: it takes less time than splitting it would.
  if (o.acc == DType::f64) {
    add_values(data<double>(o.added), data<int64_t>(o.index), o.index.numel(),
               static_cast<double*>(o.sum.mutable_data_ptr()));
  } else {
    add_values(data<float>(o.added), data<int64_t>(o.index), o.index.numel(),
               static_cast<float*>(o.sum.mutable_data_ptr()));
  }
  return o.sum;
}

Tensor sparse_matmul(const Tensor& indptr, const Tensor& indices, const Tensor& values, const Tensor& panel) {
  const char* op = MatmulOperands::op;
  check_dims(panel, 2, op, "panel");
  check_latents(panel.size(0), op);
  const CheckedRows codes(indptr, indices, values, panel.size(0), MatmulOperands::name, op);
  const MatmulOperands o(codes, panel);
  prefer_huge_pages(o.out);
  const SparseMatmulArgs args = o.args(codes);
  const auto kernel = sparse_kernels().sparse_matmul;
  std::atomic<int64_t> bad{-1};
  over_runs(codes.csr.indptr, codes.csr.rows, grain(o.C), [&](int64_t begin, int64_t end) {
    const int64_t entry = kernel(args, begin, end);
    if (entry >= 0) bad = entry;
  });
  if (bad >= 0) codes.refuse(bad, MatmulOperands::name);
  return o.out;
}

// Where one thread turns rows over.
class RoomOfRows {
 public:
  explicit RoomOfRows(int64_t latents) : start_(latents + 2) {}

  TurnedRows of(int64_t entries) {
    if (entries > static_cast<int64_t>(row_.size())) {
      row_.resize(entries);
      value_.resize(entries);
    }
    return {start_.data(), row_.data(), value_.data()};
  }

 private:
  std::vector<uint32_t> start_;
  std::vector<uint16_t> row_;
  std::vector<double> value_;
};

Tensor sparse_products(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                       const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                       int64_t num_latents) {
  const char* op = "sparse_products";
  check_latents(num_latents, op);
  const CheckedRows queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const CheckedRows rows(c_indptr, c_indices, c_values, num_latents, "c", op);
  check(queries.csr.dtype == DType::f64, op, ": q_values must be float64, not ",
        dtype_name(q_values.scalar_type()));
  check_device(queries.indptr, rows.indptr, op, "c_indptr");
  queries.check_latents("q");
  const int64_t Q = queries.csr.rows, N = rows.csr.rows, nnz = queries.csr.indptr[Q];
  const int64_t* start = rows.csr.indptr;
  const Tensor out = empty_like_options(queries.values, {Q, N}, ScalarType::Double);
  prefer_huge_pages(out);
  std::vector<int64_t> latents(nnz);
  for (int64_t i = 0; i < nnz; ++i) latents[i] = queries.latent(i);
  const auto kernel = sparse_kernels().sparse_products;
  std::atomic<int64_t> bad{-1};
  over_runs(start, N, grain(1 + nnz / std::max<int64_t>(1, num_latents)), [&](int64_t begin, int64_t end) {
    RoomOfRows room(num_latents);
    SparseProductsArgs args{rows.csr,
                            queries.csr.indptr,
                            latents.data(),
                            data<double>(queries.values),
                            Q,
                            static_cast<double*>(out.mutable_data_ptr()),
                            {}};
    for (int64_t last; begin < end; begin = last) {
      last = std::min(end, begin + kTurnedRows);
      check(start[last] - start[begin] <= UINT32_MAX, op, ": too many entries in ", last - begin, " rows");
      args.room = room.of(start[last] - start[begin]);
      const int64_t entry = kernel(args, begin, last);
      if (entry >= 0) bad = entry;
    }
  });
  if (bad >= 0) rows.refuse(bad, "c");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("sparse_decode", TORCH_BOX(&sparse_decode));
  m.impl("sampled_dot", TORCH_BOX(&sampled_dot));
  m.impl("scatter_rows", TORCH_BOX(&scatter_rows));
  m.impl("decode_grads", TORCH_BOX(&decode_grads));
  m.impl("sparse_matmul", TORCH_BOX(&sparse_matmul));
  m.impl("sparse_products", TORCH_BOX(&sparse_products));
  m.impl("scatter_values", TORCH_BOX(&scatter_values));
}

}  // namespace finescope
