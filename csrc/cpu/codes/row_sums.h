// Weighted sums of rows, and fixed-order dot products, in terms of vec.h; included by the .inl files.
#pragma once

#include <type_traits>

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

// acc[0..D) += c[0] * rows[0], then += c[1] * rows[1], ...: J whole rows on one way through `acc`, which
// stays in the nearest cache. J streams of adjacent lines suit the memory better than strips of many rows do:
// each page is looked up once. The rows `next` are fetched meanwhile, where there are any.
template <class T, int J>
FINESCOPE_INLINE void add_rows(const T* const* rows, const typename Lanes<T>::Acc* c, int64_t D,
                               typename Lanes<T>::Acc* acc, const T* const* next = nullptr) {
  using L = Lanes<T>;
  using Acc = typename L::Acc;
  using Vec = typename L::Vec;
  int64_t d = 0;
  for (; d + 2 * L::n <= D; d += 2 * L::n) {
    for (int j = 0; j < J && next != nullptr; ++j) prefetch(next[j] + d, 2 * L::n * int64_t{sizeof(T)});
    Vec low = load_raw<Acc, Vec>(acc + d), high = load_raw<Acc, Vec>(acc + d + L::n);
    for (int j = 0; j < J; ++j) {
      low += c[j] * L::load(rows[j] + d);
      high += c[j] * L::load(rows[j] + d + L::n);
    }
    Lanes<Acc>::store(low, acc + d);
    Lanes<Acc>::store(high, acc + d + L::n);
  }
  for (; d < D; ++d) {
    for (int j = 0; j < J; ++j) acc[d] += c[j] * L::load1(rows[j] + d);
  }
}

// out[0..D) = sum over i of coefficient(i) * row(i)[0..D), then + bias. `item(i, &coefficient)` returns the
// row; `ahead(i)` the one kAhead items later.
template <class T, class Out, class Item, class Ahead>
FINESCOPE_INLINE void sum_rows(int64_t n, int64_t D, Item item, Ahead ahead,
                               const typename Lanes<T>::Acc* bias, Out* out) {
  using L = Lanes<T>;
  using Acc = typename L::Acc;
  // kAhead rows of this width and the next kAhead fit into a nearest cache of 32 KiB.
  constexpr int64_t kWide = 2048 / sizeof(T);
  alignas(64) Acc acc[kWide];
  for (int64_t from = 0; from < D; from += kWide) {
    const int64_t width = D - from < kWide ? D - from : kWide;
    std::memset(acc, 0, width * sizeof(Acc));
    int64_t i = 0;
    const auto add = [&](auto rows_at_once) __attribute__((always_inline)) {
      constexpr int J = decltype(rows_at_once)::value;
      const T *rows[J], *next[J];
      Acc c[J];
      for (int j = 0; j < J; ++j) rows[j] = item(i + j, c + j) + from, next[j] = ahead(i + j) + from;
      add_rows<T, J>(rows, c, width, acc, next);
      i += J;
    };
    while (i + 8 <= n) add(std::integral_constant<int, 8>{});
    if (i + 4 <= n) add(std::integral_constant<int, 4>{});
    if (i + 2 <= n) add(std::integral_constant<int, 2>{});
    if (i < n) add(std::integral_constant<int, 1>{});
    int64_t d = 0;
    for (; d + L::n <= width; d += L::n) {
      typename L::Vec v = load_raw<Acc, typename L::Vec>(acc + d);
      if (bias != nullptr) v += load_raw<Acc, typename L::Vec>(bias + from + d);
      Lanes<Out>::store(v, out + from + d);
    }
    for (; d < width; ++d) {
      Lanes<Out>::store1(bias != nullptr ? acc[d] + bias[from + d] : acc[d], out + from + d);
    }
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
