// Bodies of the sparse kernels in terms of vec.h; included once by each sparse_<isa>.cpp.
#include "cpu/codes/matmul.inl"
#include "cpu/codes/products.inl"
#include "cpu/codes/row_sums.h"
#include "cpu/codes/sparse.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

int64_t find_out_of_range(const int64_t* indices, int64_t n, int64_t limit) {
  // Negative numbers are large when unsigned. A block at a time, so that the good case has no branch per
  // element.
  const uint64_t top = static_cast<uint64_t>(limit);
  constexpr int64_t kBlock = 256;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t end = i + kBlock < n ? i + kBlock : n;
    int64_t bad = 0;
    for (int64_t j = i; j < end; ++j) bad += static_cast<uint64_t>(indices[j]) >= top;
    if (bad == 0) continue;
    for (int64_t j = i; j < end; ++j) {
      if (static_cast<uint64_t>(indices[j]) >= top) return j;
    }
  }
  return n;
}

// --- weighted sums of rows: sparse_decode and scatter_rows

template <class T>
void decode_rows(const SparseDecodeArgs& a, int64_t begin, int64_t end) {
  using Acc = typename Lanes<T>::Acc;
  const T* weight = static_cast<const T*>(a.weight.data);
  const int64_t stride = a.weight.stride, last = end * a.K - 1;
  for (int64_t b = begin; b < end; ++b) {
    const Acc* values = static_cast<const Acc*>(a.values) + b * a.K;
    const int64_t* indices = a.indices + b * a.K;
    const auto item = [&](int64_t j, Acc* c) __attribute__((always_inline)) {
      *c = values[j];
      return weight + indices[j] * stride;
    };
    const auto ahead = [&](int64_t j) __attribute__((always_inline)) {
      const int64_t pair = b * a.K + j + kAhead;
      return weight + a.indices[pair < last ? pair : last] * stride;
    };
    sum_rows<T>(a.K, a.D, item, ahead, static_cast<const Acc*>(a.bias), static_cast<T*>(a.out) + b * a.D);
  }
}

template <class T>
void scatter(const ScatterRowsArgs& a, int64_t begin, int64_t end) {
  using Acc = typename Lanes<T>::Acc;
  const T* rows = static_cast<const T*>(a.rows.data);
  const Acc* value = static_cast<const Acc*>(a.value);
  const int64_t stride = a.rows.stride, last = a.start[end] - 1;
  for (int64_t f = begin; f < end; ++f) {
    const int64_t first = a.start[f], n = a.start[f + 1] - first;
    const auto item = [&](int64_t i, Acc* c) __attribute__((always_inline)) {
      *c = value[first + i];
      return rows + a.row[first + i] * stride;
    };
    const auto ahead = [&](int64_t i) __attribute__((always_inline)) {
      const int64_t pair = first + i + kAhead;
      return rows + a.row[pair < last ? pair : last] * stride;
    };
    sum_rows<T>(n, a.D, item, ahead, static_cast<const Acc*>(nullptr), static_cast<Acc*>(a.out) + f * a.D);
  }
}

// Both gradients of a decoding, latent by latent: the dots of a weight row with the gradients of the tokens
// that hold it, and the sum of those, while all of them are in the nearest cache. The weights are read once
// and in order; what is gathered is the gradient [B, D], which is far smaller.
template <class T>
void grads_of_decode(const DecodeGradsArgs& a, int64_t begin, int64_t end) {
  using Acc = typename Lanes<T>::Acc;
  const ScatterRowsArgs& s = a.sums;
  const T* grad = static_cast<const T*>(s.rows.data);
  const Acc* value = static_cast<const Acc*>(s.value);
  const int64_t last = s.start[end] - 1;
  for (int64_t f = begin; f < end; ++f) {
    const T* weight = static_cast<const T*>(a.weight.data) + f * a.weight.stride;
    Acc* out = static_cast<Acc*>(s.out) + f * s.D;
    std::memset(out, 0, s.D * sizeof(Acc));
    int64_t pair = s.start[f];
    const auto add = [&](auto rows_at_once) __attribute__((always_inline)) {
      constexpr int J = decltype(rows_at_once)::value;
      const T *rows[J], *next[J];
      double dot[J];
      for (int j = 0; j < J; ++j) {
        const int64_t later = pair + j + J < last ? pair + j + J : last;
        rows[j] = grad + s.row[pair + j] * s.rows.stride, next[j] = grad + s.row[later] * s.rows.stride;
      }
      dots<J>(weight, rows, s.D, dot, next);
      add_rows<T, J>(rows, value + pair, s.D, out);
      for (int j = 0; j < J; ++j) {
        static_cast<Acc*>(a.grad_values)[a.position[pair + j]] = static_cast<Acc>(dot[j]);
      }
      pair += J;
    };
    while (pair + kDotRows <= s.start[f + 1]) add(std::integral_constant<int, kDotRows>{});
    if (pair + 2 <= s.start[f + 1]) add(std::integral_constant<int, 2>{});
    if (pair < s.start[f + 1]) add(std::integral_constant<int, 1>{});
  }
}

// --- sampled dot products

template <class X, class W>
void sampled(const SampledDotArgs& a, int64_t begin, int64_t end) {
  constexpr int kGroup = kDotRows;
  const X* rows = static_cast<const X*>(a.rows.data);
  const W* weight = static_cast<const W*>(a.weight.data);
  const int64_t last = end * a.K - 1;
  for (int64_t b = begin; b < end; ++b) {
    const X* x = rows + b * a.rows.stride;
    const int64_t* indices = a.indices + b * a.K;
    for (int64_t j = 0; j < a.K; j += kGroup) {
      const int64_t n = a.K - j < kGroup ? a.K - j : kGroup;
      const W *w[kGroup], *next[kGroup];
      double dot[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        w[i] = weight + indices[j + (i < n ? i : 0)] * a.weight.stride;
        const int64_t pair = b * a.K + j + i + kGroup;
        next[i] = weight + a.indices[pair < last ? pair : last] * a.weight.stride;
      }
      if (n == kGroup) {
        dots<kGroup>(x, w, a.D, dot, next);
      } else {
        for (int64_t i = 0; i < n; ++i) dots<1>(x, w + i, a.D, dot + i, next + i);
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = b * a.K + j + i;
        if (a.f64_out) {
          static_cast<double*>(a.out)[at] = dot[i];
        } else {
          static_cast<float*>(a.out)[at] = static_cast<float>(dot[i]);
        }
      }
    }
  }
}

// --- from dtypes to types

template <class Visit>
FINESCOPE_INLINE void visit(DType dtype, Visit run) {
  switch (dtype) {
    case DType::f32:
      return run(float{});
    case DType::f64:
      return run(double{});
    case DType::bf16:
      return run(bf16{});
    case DType::f16:
      return run(f16{});
  }
}

void sparse_decode(const SparseDecodeArgs& a, int64_t begin, int64_t end) {
  visit(a.weight.dtype, [&](auto t) { decode_rows<decltype(t)>(a, begin, end); });
}

void scatter_rows(const ScatterRowsArgs& a, int64_t begin, int64_t end) {
  visit(a.rows.dtype, [&](auto t) { scatter<decltype(t)>(a, begin, end); });
}

void decode_grads(const DecodeGradsArgs& a, int64_t begin, int64_t end) {
  visit(a.weight.dtype, [&](auto t) { grads_of_decode<decltype(t)>(a, begin, end); });
}

void sampled_dot(const SampledDotArgs& a, int64_t begin, int64_t end) {
  visit(a.rows.dtype, [&](auto x) {
    visit(a.weight.dtype, [&](auto w) { sampled<decltype(x), decltype(w)>(a, begin, end); });
  });
}

// body(index, value), of the types that rows are stored in.
template <class Body>
void visit_rows(const Csr& rows, const Body& body) {
  visit(rows.dtype, [&](auto value) {
    switch (rows.index_type) {
      case IndexType::u16:
        body(uint16_t{}, value);
        break;
      case IndexType::i32:
        body(int32_t{}, value);
        break;
      default:
        body(int64_t{}, value);
    }
  });
}

int64_t sparse_matmul(const SparseMatmulArgs& a, int64_t begin, int64_t end) {
  int64_t bad = -1;
  visit_rows(a.codes, [&](auto index, auto value) {
    bad = matmul_rows<decltype(index), decltype(value)>(a, begin, end);
  });
  return bad;
}

int64_t sparse_products(const SparseProductsArgs& a, int64_t begin, int64_t end) {
  int64_t bad = -1;
  visit_rows(a.rows, [&](auto index, auto value) {
    bad = products_of_rows<decltype(index), decltype(value)>(a, begin, end);
  });
  return bad;
}

}  // namespace

const SparseKernels sparse = {find_out_of_range, sparse_decode, sampled_dot,    scatter_rows,
                              decode_grads,      sparse_matmul, sparse_products};

}  // namespace FINESCOPE_ISA
}  // namespace finescope
