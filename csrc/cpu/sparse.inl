// Bodies of the sparse kernels in terms of vec.h; included once by each sparse_<isa>.cpp.
#include "cpu/sparse.h"
#include "cpu/vec.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Pairs ahead to fetch weight rows. The rows are met in no order, so only software can know the next ones;
// eight rows in flight cover the latency of main memory at the rate a core consumes them.
constexpr int64_t kAhead = 8;

template <class T>
FINESCOPE_INLINE void prefetch(const T* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + at);
}

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

// out[0..R lanes) = sum over i of coefficient(i) * row(i)[0..R lanes); the accumulators stay in registers.
// `item(i, &coefficient)` returns the row; `ahead(i)` one that is needed soon.
template <class T, int R, class Item, class Ahead, class Finish>
FINESCOPE_INLINE void sum_block(int64_t n, int64_t d, Item item, Ahead ahead, Finish finish) {
  using L = Lanes<T>;
  typename L::Vec acc[R];
  for (int r = 0; r < R; ++r) acc[r] = typename L::Vec{};
  for (int64_t i = 0; i < n; ++i) {
    typename L::Acc c;
    const T* row = item(i, &c) + d;
    prefetch(ahead(i) + d, R * L::n * int64_t{sizeof(T)});
    for (int r = 0; r < R; ++r) acc[r] += c * L::load(row + r * L::n);
  }
  for (int r = 0; r < R; ++r) finish(d + r * L::n, acc[r]);
}

// The whole width D, in blocks of 8 registers, then single registers, then single elements.
template <class T, class Out, class Item, class Ahead>
FINESCOPE_INLINE void sum_rows(int64_t n, int64_t D, Item item, Ahead ahead,
                               const typename Lanes<T>::Acc* bias, Out* out) {
  using L = Lanes<T>;
  const auto finish = [&](int64_t d, typename L::Vec v) __attribute__((always_inline)) {
    if (bias != nullptr) v += load_raw<typename L::Acc, typename L::Vec>(bias + d);
    Lanes<Out>::store(v, out + d);
  };
  int64_t d = 0;
  for (; d + 8 * L::n <= D; d += 8 * L::n) sum_block<T, 8>(n, d, item, ahead, finish);
  for (; d + L::n <= D; d += L::n) sum_block<T, 1>(n, d, item, ahead, finish);
  for (; d < D; ++d) {
    typename L::Acc acc = 0;
    for (int64_t i = 0; i < n; ++i) {
      typename L::Acc c;
      const T* row = item(i, &c);
      acc += c * L::load1(row + d);
    }
    if (bias != nullptr) acc += bias[d];
    Lanes<Out>::store1(acc, out + d);
  }
}

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

// --- sampled dot products
// -----------------------------------------------------------------------------------------

constexpr int kDotLanes = 16;
constexpr int kDotVecs = kDotLanes / kF64Lanes;

// The fixed-order reduction of 16 partial sums.
FINESCOPE_INLINE double reduce(double* s) {
  for (int half = kDotLanes / 2; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) s[l] += s[l + half];
  }
  return s[0];
}

// N dot products of one x with rows w[0..N): N independent chains hide the latency of the adds.
template <int N, class X, class W>
FINESCOPE_INLINE void dots(const X* x, const W* const* w, int64_t D, double* out) {
  VecF64 acc[N][kDotVecs];
  for (int i = 0; i < N; ++i) {
    for (int v = 0; v < kDotVecs; ++v) acc[i][v] = VecF64{};
  }
  int64_t d = 0;
  for (; d + kDotLanes <= D; d += kDotLanes) {
    for (int v = 0; v < kDotVecs; ++v) {
      const VecF64 xv = load_f64(x + d + v * kF64Lanes);
      for (int i = 0; i < N; ++i) acc[i][v] += xv * load_f64(w[i] + d + v * kF64Lanes);
    }
  }
  for (int i = 0; i < N; ++i) {
    double s[kDotLanes];
    std::memcpy(s, acc[i], sizeof(s));
    // The missing lanes of the last step would add +0, which changes nothing: no lane is ever -0.
    for (int64_t t = d; t < D; ++t) s[t - d] += to_f64(x[t]) * to_f64(w[i][t]);
    out[i] = reduce(s);
  }
}

template <class X, class W>
void sampled(const SampledDotArgs& a, int64_t begin, int64_t end) {
  constexpr int kGroup = 4;
  const X* rows = static_cast<const X*>(a.rows.data);
  const W* weight = static_cast<const W*>(a.weight.data);
  const int64_t last = end * a.K - 1;
  for (int64_t b = begin; b < end; ++b) {
    const X* x = rows + b * a.rows.stride;
    const int64_t* indices = a.indices + b * a.K;
    for (int64_t j = 0; j < a.K; j += kGroup) {
      const int64_t n = a.K - j < kGroup ? a.K - j : kGroup;
      const W* w[kGroup];
      double dot[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        w[i] = weight + indices[j + (i < n ? i : 0)] * a.weight.stride;
        const int64_t pair = b * a.K + j + i + kGroup;
        prefetch(weight + a.indices[pair < last ? pair : last] * a.weight.stride, a.D * int64_t{sizeof(W)});
      }
      if (n == kGroup) {
        dots<kGroup>(x, w, a.D, dot);
      } else {
        for (int64_t i = 0; i < n; ++i) dots<1>(x, w + i, a.D, dot + i);
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
