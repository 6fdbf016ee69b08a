// Weighted sums of rows, and fixed-order dot products, in terms of vec.h; included by the .inl files.
#pragma once

#include "cpu/vec.h"

namespace finescope {
namespace FINESCOPE_ISA {

// Pairs ahead to fetch weight rows. The rows are met in no order, so only software can know the next ones;
// eight rows in flight cover the latency of main memory at the rate a core consumes them.
constexpr int64_t kAhead = 8;

template <class T>
FINESCOPE_INLINE void prefetch(const T* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + at);
}

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

// acc + x * y, fused where the product is exact anyway: that of two numbers of at most 24 bits is, in
// float64.
template <bool Exact>
FINESCOPE_INLINE VecF64 add_product(VecF64 x, VecF64 y, VecF64 acc) {
#if defined(__AVX512F__)
  if (Exact)
    return bits_as<VecF64>(_mm512_fmadd_pd(bits_as<__m512d>(x), bits_as<__m512d>(y), bits_as<__m512d>(acc)));
#elif defined(__FMA__)
  if (Exact)
    return bits_as<VecF64>(_mm256_fmadd_pd(bits_as<__m256d>(x), bits_as<__m256d>(y), bits_as<__m256d>(acc)));
#elif defined(FINESCOPE_NEON)
  if (Exact)
    return bits_as<VecF64>(
        vfmaq_f64(bits_as<float64x2_t>(acc), bits_as<float64x2_t>(x), bits_as<float64x2_t>(y)));
#endif
  return acc + x * y;
}

constexpr int kDotLanes = 16;
constexpr int kDotVecs = kDotLanes / kF64Lanes;
// Rows whose dots are made at once. With registers of 16 bytes each takes eight accumulators: two rows hide
// the latency of the adds, and four would not fit.
constexpr int kDotRows = kF64Lanes > 2 ? 4 : 2;

// The fixed-order reduction of 16 partial sums.
FINESCOPE_INLINE double reduce(double* s) {
  for (int half = kDotLanes / 2; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) s[l] += s[l + half];
  }
  return s[0];
}

// N dot products of one x with rows w[0..N): N independent chains hide the latency of the adds. The rows
// `next` are fetched meanwhile, step by step: asked for all at once, they would wait for each other.
template <int N, class X, class W>
FINESCOPE_INLINE void dots(const X* x, const W* const* w, int64_t D, double* out,
                           const W* const* next = nullptr) {
  VecF64 acc[N][kDotVecs];
  for (int i = 0; i < N; ++i) {
    for (int v = 0; v < kDotVecs; ++v) acc[i][v] = VecF64{};
  }
  int64_t d = 0;
  for (; d + kDotLanes <= D; d += kDotLanes) {
    for (int i = 0; i < N && next != nullptr; ++i) __builtin_prefetch(next[i] + d);
    for (int v = 0; v < kDotVecs; ++v) {
      const VecF64 xv = load_f64(x + d + v * kF64Lanes);
      for (int i = 0; i < N; ++i) {
        const VecF64 wv = load_f64(w[i] + d + v * kF64Lanes);
        acc[i][v] = add_product<(sizeof(X) < 8 && sizeof(W) < 8)>(xv, wv, acc[i][v]);
      }
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

}  // namespace FINESCOPE_ISA
}  // namespace finescope
