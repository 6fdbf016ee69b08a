// Rows of any dtype, and their dot products, in terms of vec.h. Included by rows.inl.
#include "cpu/topk/kernels.h"
#include "cpu/vec.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

typedef int32_t VecI32 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES)));
typedef int8_t VecI8 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES / 4)));

FINESCOPE_INLINE VecF32 splat(float x) {
  return VecF32{} + x;
}

FINESCOPE_INLINE float total(VecF32 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(bits_as<__m512>(v));
#else
  float sum = v[0];
  for (int l = 1; l < kF32Lanes; ++l) sum += v[l];
  return sum;
#endif
}
FINESCOPE_INLINE int32_t total(VecI32 v) {
  int32_t sum = v[0];
  for (int l = 1; l < kF32Lanes; ++l) sum += v[l];
  return sum;
}

// The sums of four registers.
FINESCOPE_INLINE void totals(VecF32 a, VecF32 b, VecF32 c, VecF32 e, float* out) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto fold = [](VecF32 v) {
    const __m512d wide = bits_as<__m512d>(v);
    return _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(wide)),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(wide, 1)));
  };
  const __m256 p = fold(a), q = fold(b), r = fold(c), s = fold(e);
#else
  const __m256 p = bits_as<__m256>(a), q = bits_as<__m256>(b), r = bits_as<__m256>(c), s = bits_as<__m256>(e);
#endif
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(p, q), _mm256_hadd_ps(r, s));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
  out[0] = total(a);
  out[1] = total(b);
  out[2] = total(c);
  out[3] = total(e);
#endif
}

// --- loading rows

template <class T>
uint32_t widen_f32(const T* row, int64_t d, float* out) {
  VecU32 largest = {};
  int64_t i = 0;
  for (; i + kF32Lanes <= d; i += kF32Lanes) {
    const VecF32 v = load_f32(row + i);
    const VecU32 magnitude = bits_as<VecU32>(v) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
    store_f32(v, out + i);
  }
  uint32_t result = 0;
  for (int l = 0; l < kF32Lanes; ++l) result = largest[l] > result ? largest[l] : result;
  for (; i < d; ++i) {
    out[i] = to_f32(row[i]);
    const uint32_t magnitude = bits_as<uint32_t>(out[i]) & 0x7fffffffu;
    result = magnitude > result ? magnitude : result;
  }
  for (; i % 16 != 0; ++i) out[i] = 0.0f;
  return result;
}

uint32_t widen_f32(const double* row, int64_t d, float* out) {
  uint32_t result = 0;
  int64_t i = 0;
  for (; i < d; ++i) {
    out[i] = static_cast<float>(row[i]);
    const uint32_t magnitude = bits_as<uint32_t>(out[i]) & 0x7fffffffu;
    result = magnitude > result ? magnitude : result;
  }
  for (; i % 16 != 0; ++i) out[i] = 0.0f;
  return result;
}

template <class T>
void widen_f64(const T* row, int64_t d, double* out) {
  int64_t i = 0;
  for (; i + kF64Lanes <= d; i += kF64Lanes) {
    const VecF64 v = load_f64(row + i);
    std::memcpy(out + i, &v, sizeof(v));
  }
  for (; i < d; ++i) out[i] = to_f64(row[i]);
  for (; i % 16 != 0; ++i) out[i] = 0.0;
}

template <class Visit>
FINESCOPE_INLINE auto visit(DType dtype, const void* row, Visit run) {
  switch (dtype) {
    case DType::f64:
      return run(static_cast<const double*>(row));
    case DType::bf16:
      return run(static_cast<const bf16*>(row));
    case DType::f16:
      return run(static_cast<const f16*>(row));
    default:
      return run(static_cast<const float*>(row));
  }
}

uint32_t row_to_f32(const void* row, DType dtype, int64_t d, float* out) {
  return visit(dtype, row, [&](const auto* p) { return widen_f32(p, d, out); });
}

void row_to_f64(const void* row, DType dtype, int64_t d, double* out) {
  visit(dtype, row, [&](const auto* p) { widen_f64(p, d, out); });
}

// --- the fixed-order dot

constexpr int kDotLanes = 16;
constexpr int kDotVecs = kDotLanes / kF64Lanes;
// As many rows at once as there are registers for, so that the latency of the adds is hidden.
#if defined(FINESCOPE_NEON)
constexpr int kRowsAtOnce = 2;
#else
constexpr int kRowsAtOnce = FINESCOPE_VECTOR_BYTES / 16;
#endif

// Two float32 factors have an exact float64 product, so fusing changes no bit. float64 factors do not.
FINESCOPE_INLINE VecF64 add_product(VecF64 sum, VecF64 a, const float* b) {
  const VecF64 v = load_f64(b);
#if defined(__AVX512F__)
  return bits_as<VecF64>(_mm512_fmadd_pd(bits_as<__m512d>(a), bits_as<__m512d>(v), bits_as<__m512d>(sum)));
#elif defined(__FMA__)
  return bits_as<VecF64>(_mm256_fmadd_pd(bits_as<__m256d>(a), bits_as<__m256d>(v), bits_as<__m256d>(sum)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF64>(
      vfmaq_f64(bits_as<float64x2_t>(sum), bits_as<float64x2_t>(a), bits_as<float64x2_t>(v)));
#else
  return sum + a * v;
#endif
}
FINESCOPE_INLINE VecF64 add_product(VecF64 sum, VecF64 a, const double* b) {
  return sum + a * load_f64(b);
}

// Accumulators stay in registers only where the bounds of every loop over them are constants, here too: GCC
// would store them on the stack in each step of the sum.
template <int half>
FINESCOPE_INLINE void fold(VecF64* acc) {
  for (int v = 0; v < half; ++v) acc[v] += acc[v + half];
  if constexpr (half > 1) fold<half / 2>(acc);
}

// The order of the reduction is that of the definition, 8, 4, 2, 1, on whole registers as long as they last.
FINESCOPE_INLINE double reduce(VecF64* acc) {
  if constexpr (kDotVecs > 1) fold<kDotVecs / 2>(acc);
  double s[kF64Lanes];
  std::memcpy(s, acc, sizeof(s));
  for (int half = kF64Lanes / 2; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) s[l] += s[l + half];
  }
  return s[0];
}

template <int N, class T>
FINESCOPE_INLINE void dot_block(const double* a, const T* const* rows, int64_t d, double* out) {
  VecF64 acc[N][kDotVecs];
  for (int i = 0; i < N; ++i) {
    for (int v = 0; v < kDotVecs; ++v) acc[i][v] = VecF64{};
  }
  for (int64_t at = 0; at < d; at += kDotLanes) {
    for (int v = 0; v < kDotVecs; ++v) {
      const VecF64 av = load_f64(a + at + v * kF64Lanes);
      for (int i = 0; i < N; ++i) acc[i][v] = add_product(acc[i][v], av, rows[i] + at + v * kF64Lanes);
    }
  }
  for (int i = 0; i < N; ++i) out[i] = reduce(acc[i]);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// What is left of n rows after blocks of N, all at once: body(Count<n>) for 0 < n < N.
template <int N, class Body>
FINESCOPE_INLINE void last_rows(int64_t n, const Body& body) {
  if constexpr (N > 1) {
    if (n == N - 1) {
      body(Count<N - 1>{});
    } else {
      last_rows<N - 1>(n, body);
    }
  }
}

template <class T>
void dots(const double* a, const T* const* rows, int64_t n, int64_t d, double* out) {
  constexpr int kBlock = kRowsAtOnce;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) dot_block<kBlock>(a, rows + i, d, out + i);
  last_rows<kBlock>(n - i, [&](auto count) { dot_block<count.value>(a, rows + i, d, out + i); });
}

double squared_norm(const float* row, int64_t d) {
  VecF64 acc[kDotVecs];
  for (int v = 0; v < kDotVecs; ++v) acc[v] = VecF64{};
  for (int64_t at = 0; at < d; at += kDotLanes) {
    for (int v = 0; v < kDotVecs; ++v) {
      const float* p = row + at + v * kF64Lanes;
      acc[v] = add_product(acc[v], load_f64(p), p);
    }
  }
  return reduce(acc);
}

template <int N, bool kSquares>
FINESCOPE_INLINE void stream_block(const double* a, const float* const* rows, int64_t d, double* out,
                                   double* squared) {
  VecF64 acc[N][kDotVecs], own[N][kDotVecs];
  for (int i = 0; i < N; ++i) {
    for (int v = 0; v < kDotVecs; ++v) acc[i][v] = own[i][v] = VecF64{};
  }
  // Each row ends before the hardware has learnt that it is read in order, so the next rows are asked for
  // here.
  const int64_t ahead = N > 1 ? (rows[1] - rows[0]) * N : d;
  for (int64_t at = 0; at < d; at += kDotLanes) {
    for (int i = 0; i < N; ++i) __builtin_prefetch(rows[i] + at + ahead);
    for (int v = 0; v < kDotVecs; ++v) {
      const VecF64 av = load_f64(a + at + v * kF64Lanes);
      for (int i = 0; i < N; ++i) {
        const float* p = rows[i] + at + v * kF64Lanes;
        acc[i][v] = add_product(acc[i][v], av, p);
        if (kSquares) own[i][v] = add_product(own[i][v], load_f64(p), p);
      }
    }
  }
  for (int i = 0; i < N; ++i) {
    out[i] = reduce(acc[i]);
    if (kSquares) squared[i] = reduce(own[i]);
  }
}

template <bool kSquares>
FINESCOPE_INLINE void stream(const double* a, const float* const* rows, int64_t n, int64_t d, double* out,
                             double* squared) {
  // Two sums for each row take twice the registers.
  constexpr int kBlock = kSquares && kF64Lanes == 2 ? 1 : kRowsAtOnce;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) stream_block<kBlock, kSquares>(a, rows + i, d, out + i, squared + i);
  for (; i < n; ++i) stream_block<1, kSquares>(a, rows + i, d, out + i, squared + i);
}

void stream_dots(const double* a, const float* const* rows, int64_t n, int64_t d, double* out,
                 double* squared) {
  if (squared != nullptr) {
    stream<true>(a, rows, n, d, out, squared);
  } else {
    stream<false>(a, rows, n, d, out, out);
  }
}

FINESCOPE_INLINE VecF32 add_product_f32(VecF32 sum, VecF32 a, VecF32 b) {
#if defined(__AVX512F__)
  return bits_as<VecF32>(_mm512_fmadd_ps(bits_as<__m512>(a), bits_as<__m512>(b), bits_as<__m512>(sum)));
#elif defined(__FMA__)
  return bits_as<VecF32>(_mm256_fmadd_ps(bits_as<__m256>(a), bits_as<__m256>(b), bits_as<__m256>(sum)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF32>(
      vfmaq_f32(bits_as<float32x4_t>(sum), bits_as<float32x4_t>(a), bits_as<float32x4_t>(b)));
#else
  return sum + a * b;
#endif
}

// `next`: N rows that will be asked for after these, or null; `later`: a row that will be the next x.
template <int N>
FINESCOPE_INLINE void quick_block(const float* x, const float* const* rows, int64_t d, float* out,
                                  const float* const* next, const float* later) {
  constexpr int kVecs = 16 / kF32Lanes;
  // What is on its way to the first-level cache: more would drive out what is in use.
  constexpr int64_t kAhead = 256;
  VecF32 acc[N][kVecs];
  for (int i = 0; i < N; ++i) {
    for (int v = 0; v < kVecs; ++v) acc[i][v] = VecF32{};
  }
  int64_t at = 0;
  const auto step = [&](const float* const* ahead, int64_t to) __attribute__((always_inline)) {
    for (int v = 0; v < kVecs; ++v) {
      const VecF32 xv = load_f32(x + at + v * kF32Lanes);
      for (int i = 0; i < N; ++i)
        acc[i][v] = add_product_f32(acc[i][v], xv, load_f32(rows[i] + at + v * kF32Lanes));
    }
    for (int i = 0; i < N; ++i) __builtin_prefetch(ahead[i] + to);
    // Into the second-level cache: from memory, it would block the few places for what is on its way to the
    // first.
    __builtin_prefetch(later + at, 0, 2);
  };
  for (; at + kAhead < d; at += 16) step(rows, at + kAhead);
  for (int64_t to = 0; at < d; at += 16, to += 16) step(next, to);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    for (int v = 1; v < kVecs; ++v) acc[i][0] += acc[i][v];
  }
  if constexpr (N == 4) {
    totals(acc[0][0], acc[1][0], acc[2][0], acc[3][0], out);
  } else {
    for (int i = 0; i < N; ++i) out[i] = total(acc[i][0]);
  }
}

// The rows are met in no order, so only software can fetch them ahead.
void quick_dots(const float* x, const float* const* rows, int64_t n, int64_t more, const float* later,
                int64_t d, float* out) {
  constexpr int kBlock = FINESCOPE_VECTOR_BYTES >= 32 ? 4 : kRowsAtOnce;  // eight accumulators with AVX2
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    quick_block<kBlock>(x, rows + i, d, out + i, rows + i + (i + 2 * kBlock <= n + more ? kBlock : 0), later);
    later = x;
  }
  last_rows<kBlock>(n - i, [&](auto count) {
    constexpr int kLast = count.value;
    const float* const* next = rows + (kLast <= more ? n : i);
    quick_block<kLast>(x, rows + i, d, out + i, next, later);
  });
}

// --- all pairs of a few rows

constexpr int kFewX = 4, kFewW = 3;  // 12 accumulators of 16 registers

template <int MX>
__attribute__((noinline)) void few_dots(const float* const* x, const float* const* rows, int64_t d,
                                        float* out, int64_t out_stride) {
  VecF32 acc[kFewW][kFewX];
#pragma GCC unroll 3
  for (int j = 0; j < kFewW; ++j) {
#pragma GCC unroll 4
    for (int i = 0; i < kFewX; ++i) acc[j][i] = VecF32{};
  }
  const float *w0 = rows[0], *w1 = rows[1], *w2 = rows[2];
  for (int64_t at = 0; at < d; at += kF32Lanes) {
    const VecF32 v0 = load_f32(w0 + at), v1 = load_f32(w1 + at), v2 = load_f32(w2 + at);
#pragma GCC unroll 4
    for (int i = 0; i < MX; ++i) {
      const VecF32 xi = load_f32(x[i] + at);
      acc[0][i] = add_product_f32(acc[0][i], v0, xi);
      acc[1][i] = add_product_f32(acc[1][i], v1, xi);
      acc[2][i] = add_product_f32(acc[2][i], v2, xi);
    }
  }
#pragma GCC unroll 3
  for (int j = 0; j < kFewW; ++j) {
    float sums[kFewX];
    totals(acc[j][0], acc[j][1], acc[j][2], acc[j][3], sums);
    for (int i = 0; i < MX; ++i) out[i * out_stride + j] = sums[i];
  }
}

void block_dots(const float* const* x, int64_t nx, const float* const* rows, int64_t n, int64_t d, float* out,
                int64_t out_stride) {
  using Few = void (*)(const float* const*, const float* const*, int64_t, float*, int64_t);
  static const Few few[kFewX] = {few_dots<1>, few_dots<2>, few_dots<3>, few_dots<4>};
  const int64_t groups = (nx + kFewX - 1) / kFewX;
  for (int64_t j = 0; j < n; j += kFewW) {
    const float* three[kFewW];
    for (int64_t t = 0; t < kFewW; ++t) three[t] = rows[j + t < n ? j + t : n - 1];
    // While the dots of these rows with many x are worked out, memory would be idle.
    const int64_t ahead = j + 2 * kFewW <= n ? kFewW : 0;
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t t = 0; ahead > 0 && t < kFewW; ++t) {
        if (t % groups != g) continue;
        for (int64_t at = 0; at < d; at += 16) __builtin_prefetch(rows[j + ahead + t] + at);
      }
      const int64_t first = nx * g / groups, end = nx * (g + 1) / groups;
      few[end - first - 1](x + first, three, d, out + first * out_stride + j, out_stride);
    }
  }
}

void quick_squares(const float* const* rows, int64_t n, int64_t d, float* out) {
  for (int64_t j = 0; j < n; j += 4) {
    const float* four[4];
    VecF32 acc[4] = {};
    for (int64_t t = 0; t < 4; ++t) four[t] = rows[j + t < n ? j + t : n - 1];
    for (int64_t at = 0; at < d; at += kF32Lanes) {
      for (int t = 0; t < 4; ++t) {
        const VecF32 v = load_f32(four[t] + at);
        acc[t] = add_product_f32(acc[t], v, v);
      }
    }
    float sums[4];
    totals(acc[0], acc[1], acc[2], acc[3], sums);
    for (int64_t t = 0; t < 4 && j + t < n; ++t) out[j + t] = sums[t];
  }
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
