// Bodies of the training kernels in terms of vec.h; included once by each training_<isa>.cpp.
#include <cmath>

#include "cpu/codes/row_sums.h"
#include "cpu/codes/training.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

FINESCOPE_INLINE VecF32 root(VecF32 v) {
#if defined(__AVX512F__)
  return bits_as<VecF32>(_mm512_maskz_sqrt_ps(0xffff, bits_as<__m512>(v)));
#elif defined(__AVX2__)
  return bits_as<VecF32>(_mm256_sqrt_ps(bits_as<__m256>(v)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF32>(vsqrtq_f32(bits_as<float32x4_t>(v)));
#else
  for (int i = 0; i < kF32Lanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}
FINESCOPE_INLINE VecF64 root(VecF64 v) {
#if defined(__AVX512F__)
  return bits_as<VecF64>(_mm512_maskz_sqrt_pd(0xff, bits_as<__m512d>(v)));
#elif defined(__AVX2__)
  return bits_as<VecF64>(_mm256_sqrt_pd(bits_as<__m256d>(v)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF64>(vsqrtq_f64(bits_as<float64x2_t>(v)));
#else
  for (int i = 0; i < kF64Lanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}
FINESCOPE_INLINE float root(float v) {
  return std::sqrt(v);
}
FINESCOPE_INLINE double root(double v) {
  return std::sqrt(v);
}

template <class X, class W>
FINESCOPE_INLINE double dot(const X* x, const W* w, int64_t D) {
  double out;
  dots<1>(x, &w, D, &out);
  return out;
}

// --- Adam

template <class T>
struct Adam {
  using L = Lanes<T>;
  using Acc = typename L::Acc;
  const Acc rate1, beta2, rate2, step_size, eps;

  explicit Adam(const AdamArgs& a)
      : rate1(static_cast<Acc>(a.rate1)),
        beta2(static_cast<Acc>(a.beta2)),
        rate2(static_cast<Acc>(a.rate2)),
        step_size(static_cast<Acc>(a.scales ? a.scales[0] : a.step_size)),
        eps(static_cast<Acc>(a.scales ? a.scales[1] : a.eps)) {}

  // One lane or one register of the update; V is Acc or a vector of it.
  template <class V>
  FINESCOPE_INLINE void update(V& w, V g, V& m, V& v) const {
    m += (g - m) * rate1;
    v = v * beta2 + g * rate2 * g;
    w -= m * step_size / (root(v) + eps);
  }

  // n adjacent elements. `along` is how much of w to take off the gradient, if any.
  template <bool project>
  FINESCOPE_INLINE void run(T* w, const T* g, T* m, T* v, int64_t n, Acc along = 0) const {
    int64_t d = 0;
    for (; d + L::n <= n; d += L::n) {
      auto weight = L::load(w + d), grad = L::load(g + d), mean = L::load(m + d), square = L::load(v + d);
      if (project) grad -= weight * along;
      update(weight, grad, mean, square);
      L::store(mean, m + d);
      L::store(square, v + d);
      L::store(weight, w + d);
    }
    for (; d < n; ++d) {
      Acc weight = L::load1(w + d), grad = L::load1(g + d), mean = L::load1(m + d), square = L::load1(v + d);
      if (project) grad -= weight * along;
      update(weight, grad, mean, square);
      L::store1(mean, m + d);
      L::store1(square, v + d);
      L::store1(weight, w + d);
    }
  }
};

template <class T>
FINESCOPE_INLINE void divide(T* w, int64_t n, typename Lanes<T>::Acc by) {
  using L = Lanes<T>;
  int64_t d = 0;
  for (; d + L::n <= n; d += L::n) L::store(L::load(w + d) / by, w + d);
  for (; d < n; ++d) L::store1(L::load1(w + d) / by, w + d);
}

template <class T>
void adam(const AdamArgs& a, int64_t begin, int64_t end) {
  using Acc = typename Lanes<T>::Acc;
  const Adam<T> step(a);
  T *w = static_cast<T*>(a.weight), *m = static_cast<T*>(a.mean), *v = static_cast<T*>(a.square);
  const T* g = static_cast<const T*>(a.grad);
  if (!a.unit_norm) {
    step.template run<false>(w + begin, g + begin, m + begin, v + begin, end - begin);
    return;
  }
  const int64_t D = a.width;
  for (int64_t at = begin * D; at < end * D; at += D) {
    // The row stays in the nearest cache from its first dot to its norm.
    step.template run<true>(w + at, g + at, m + at, v + at, D, static_cast<Acc>(dot(g + at, w + at, D)));
    const Acc norm = static_cast<Acc>(std::sqrt(dot(w + at, w + at, D)));
    if (norm != 0) divide(w + at, D, norm);
  }
}

// --- decoding with residuals and their dots

template <class T>
FINESCOPE_INLINE void subtract(const T* from, const T* what, int64_t n, T* out) {
  using L = Lanes<T>;
  int64_t d = 0;
  for (; d + L::n <= n; d += L::n) L::store(L::load(from + d) - L::load(what + d), out + d);
  for (; d < n; ++d) out[d] = from[d] - what[d];
}

template <class T>
void dots_of_rows(const T* x, const T* weight, int64_t stride, const int64_t* indices, int64_t n, int64_t D,
                  T* out) {
  constexpr int kGroup = kDotRows;
  const T* w[kGroup];
  double dot[kGroup];
  int64_t j = 0;
  for (; j + kGroup <= n; j += kGroup) {
    for (int i = 0; i < kGroup; ++i) w[i] = weight + indices[j + i] * stride;
    dots<kGroup>(x, w, D, dot);
    for (int i = 0; i < kGroup; ++i) out[j + i] = static_cast<T>(dot[i]);
  }
  for (; j < n; ++j) {
    w[0] = weight + indices[j] * stride;
    dots<1>(x, w, D, dot);
    out[j] = static_cast<T>(dot[0]);
  }
}

template <class T>
void decode_with_residuals(const DecodeResidualArgs& a, int64_t begin, int64_t end) {
  const T* weight = static_cast<const T*>(a.weight.data);
  const int64_t stride = a.weight.stride, D = a.D, K = a.K, last = end * K - 1;
  for (int64_t b = begin; b < end; ++b) {
    const T* values = static_cast<const T*>(a.values) + b * K;
    const int64_t* indices = a.indices + b * K;
    const auto item = [&](int64_t j, T* c) __attribute__((always_inline)) {
      *c = values[j];
      return weight + indices[j] * stride;
    };
    const auto ahead = [&](int64_t j) __attribute__((always_inline)) {
      const int64_t pair = b * K + j + kAhead;
      return weight + a.indices[pair < last ? pair : last] * stride;
    };
    const auto later_item = [&](int64_t j, T* c) __attribute__((always_inline)) { return item(a.k + j, c); };
    const auto later_ahead = [&](int64_t j) __attribute__((always_inline)) { return ahead(a.k + j); };
    T* out = static_cast<T*>(a.out) + b * D;
    sum_rows<T>(a.k, D, item, ahead, static_cast<const T*>(a.bias), out);
    for (int64_t r = 0; r < a.R; ++r) {
      const int64_t at = r * a.B + b, n = r == 0 ? a.k : K;
      T* residual = static_cast<T*>(a.residual) + at * D;
      if (r == 0) {
        subtract(static_cast<const T*>(a.target.data) + b * a.target.stride, out, D, residual);
      } else {
        sum_rows<T>(K - a.k, D, later_item, later_ahead, static_cast<const T*>(nullptr), residual);
        subtract(static_cast<const T*>(a.residual) + b * D, residual, D, residual);
      }
      T* dot_row = static_cast<T*>(a.dots) + at * K;
      dots_of_rows(residual, weight, stride, indices, n, D, dot_row);
      for (int64_t j = n; j < K; ++j) dot_row[j] = 0;
      static_cast<T*>(a.errors)[at] = static_cast<T>(dot(residual, residual, D));
    }
  }
}

// --- gradients of both matrices

// R registers of the two sums of one latent; x and grad rows differ, the list of pairs does not.
template <class T, int R>
FINESCOPE_INLINE void grad_block(const Pair<T>* pairs, int64_t n, const T* x, const T* grad, int64_t width,
                                 T* encoder, T* decoder) {
  using L = Lanes<T>;
  typename L::Vec first[R], second[R];
  for (int r = 0; r < R; ++r) first[r] = second[r] = typename L::Vec{};
  for (int64_t i = 0; i < n; ++i) {
    const T *a = x + pairs[i].row * width, *b = grad + pairs[i].grad_row * width;
    for (int r = 0; r < R; ++r) first[r] += pairs[i].first * L::load(a + r * L::n);
    for (int r = 0; r < R; ++r) second[r] += pairs[i].second * L::load(b + r * L::n);
  }
  for (int r = 0; r < R; ++r) L::store(first[r], encoder + r * L::n);
  for (int r = 0; r < R; ++r) L::store(second[r], decoder + r * L::n);
}

template <class T>
void weight_grads_of(const WeightGradArgs& a, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  const Pair<T>* pairs = static_cast<const Pair<T>*>(a.pairs);
  const int64_t D = a.D, width = a.width;
  for (int64_t from = 0; from < D; from += width) {
    const T* x = static_cast<const T*>(a.x) + from * a.B;
    const T* grad = static_cast<const T*>(a.grad) + from * a.rows;
    const int64_t columns = D - from < width ? D - from : width;
    for (int64_t f = begin; f < end; ++f) {
      const Pair<T>* mine = pairs + a.start[f];
      const int64_t n = a.start[f + 1] - a.start[f];
      T* encoder = static_cast<T*>(a.encoder) + f * D + from;
      T* decoder = static_cast<T*>(a.decoder) + f * D + from;
      int64_t d = 0;
      for (; d + 4 * L::n <= columns; d += 4 * L::n) {
        grad_block<T, 4>(mine, n, x + d, grad + d, width, encoder + d, decoder + d);
      }
      for (; d + 2 * L::n <= columns; d += 2 * L::n) {
        grad_block<T, 2>(mine, n, x + d, grad + d, width, encoder + d, decoder + d);
      }
      for (; d + L::n <= columns; d += L::n) {
        grad_block<T, 1>(mine, n, x + d, grad + d, width, encoder + d, decoder + d);
      }
      for (; d < columns; ++d) {
        T first = 0, second = 0;
        for (int64_t i = 0; i < n; ++i) {
          first += mine[i].first * x[mine[i].row * width + d];
          second += mine[i].second * grad[mine[i].grad_row * width + d];
        }
        encoder[d] = first;
        decoder[d] = second;
      }
    }
  }
  for (int64_t f = begin; f < end; ++f) {
    T total = 0;
    for (int64_t i = a.start[f]; i < a.start[f + 1]; ++i) total += pairs[i].first;
    static_cast<T*>(a.bias)[f] = total;
  }
}

// --- from dtypes to types

void adam_step(const AdamArgs& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32:
      return adam<float>(a, begin, end);
    case DType::f64:
      return adam<double>(a, begin, end);
    case DType::bf16:
      return adam<bf16>(a, begin, end);
    case DType::f16:
      return adam<f16>(a, begin, end);
  }
}

void decode_residual(const DecodeResidualArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == DType::f64) return decode_with_residuals<double>(a, begin, end);
  decode_with_residuals<float>(a, begin, end);
}

void weight_grads(const WeightGradArgs& a, int64_t begin, int64_t end) {
  if (a.dtype == DType::f64) return weight_grads_of<double>(a, begin, end);
  weight_grads_of<float>(a, begin, end);
}

}  // namespace

const TrainingKernels training = {adam_step, decode_residual, weight_grads};

}  // namespace FINESCOPE_ISA
}  // namespace finescope
