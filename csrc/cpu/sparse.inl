// Bodies of the sparse kernels in terms of vec.h; included once by each sparse_<isa>.cpp.
#include "cpu/row_sums.h"
#include "cpu/sparse.h"

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
// --------------------------------------------------------

// A strip of columns at a time, for all rows of the range: the strip of the weights stays in a near cache
// where the whole matrix would not, and a latent that several tokens hold is fetched from far away once.
constexpr int64_t kStripBytes = 512;

template <class T>
void decode_rows(const SparseDecodeArgs& a, int64_t begin, int64_t end) {
  using Acc = typename Lanes<T>::Acc;
  constexpr int64_t kStrip = kStripBytes / sizeof(T);
  const int64_t stride = a.weight.stride, last = end * a.K - 1;
  for (int64_t d = 0; d < a.D; d += kStrip) {
    const int64_t width = a.D - d < kStrip ? a.D - d : kStrip;
    const T* weight = static_cast<const T*>(a.weight.data) + d;
    const Acc* bias = a.bias == nullptr ? nullptr : static_cast<const Acc*>(a.bias) + d;
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
      sum_rows<T>(a.K, width, item, ahead, bias, static_cast<T*>(a.out) + b * a.D + d);
    }
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

// --- sampled dot products
// -----------------------------------------------------------------------------------------

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
// -----------------------------------------------------------------------------------------

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

void sampled_dot(const SampledDotArgs& a, int64_t begin, int64_t end) {
  visit(a.rows.dtype, [&](auto x) {
    visit(a.weight.dtype, [&](auto w) { sampled<decltype(x), decltype(w)>(a, begin, end); });
  });
}

}  // namespace

const SparseKernels sparse = {find_out_of_range, sparse_decode, sampled_dot, scatter_rows};

}  // namespace FINESCOPE_ISA
}  // namespace finescope
