// sparse_matmul: sparse rows times a dense panel, in terms of vec.h; included by sparse.inl.
//
// Entries are unpacked a few hundred at a time: latents to 32 bits, values to float64. What is left is a loop of
// loads, multiplies and adds with all sums of a row in registers, in strips of columns. A row's sums wait for
// each other, so several rows take turns where one has too few columns to keep the adders busy.
#include "cpu/codes/row_sums.h"
#include "kernels.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Sums of a strip: they, a coefficient and a product have to fit into the registers.
constexpr int kStripVecs = 6;
// Entries at a time: a dozen rows, and room for rows of the panel beside them in the nearest cache.
constexpr int64_t kUnpacked = 1536;

FINESCOPE_INLINE int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The first n elements at p and zeros, for 0 < n <= kF64Lanes.
FINESCOPE_INLINE VecF64 load_first(const double* p, int64_t n) {
#if defined(__AVX512F__)
  return bits_as<VecF64>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p));
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return bits_as<VecF64>(_mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane)));
#else
  return n == kF64Lanes ? load_f64(p) : VecF64{p[0]};
#endif
}

// Entries of several rows, and what follows them.
struct Unpacked {
  alignas(64) double value[kUnpacked];
  alignas(64) uint32_t latent[kUnpacked + kAhead];

  // Entries first..first + n, of which there are `all` in total. The index of one whose latent is out of range, or
  // -1.
  template <class I, class T>
  FINESCOPE_INLINE int64_t load(const I* indices, const T* values, int64_t first, int64_t n, int64_t all,
                                int64_t latents) {
    // Negative numbers are large when unsigned; there are at most 2^31 latents.
    using U = std::conditional_t<sizeof(I) == 8, uint64_t, uint32_t>;
    const U limit = static_cast<U>(latents);
    U bad = 0;
    for (int64_t i = 0; i < n; ++i) {
      const U f = static_cast<U>(indices[first + i]);
      bad |= f >= limit ? 1 : 0;
      latent[i] = static_cast<uint32_t>(f);
    }
    if (bad != 0) {
      while (static_cast<U>(indices[first]) < limit) ++first;
      return first;
    }
    // Fetched in advance only, whatever they are.
    const int64_t later = smaller(kAhead, all - first - n);
    for (int64_t i = 0; i < kAhead; ++i) {
      latent[n + i] = i < later ? static_cast<uint32_t>(indices[first + n + i]) : 0;
    }
    int64_t i = 0;
    for (; i + kF64Lanes <= n; i += kF64Lanes) {
      const VecF64 v = load_f64(values + first + i);
      std::memcpy(value + i, &v, sizeof(v));
    }
    for (; i < n; ++i) value[i] = to_f64(values[first + i]);
    return -1;
  }
};

struct StripArgs {
  const double* panel;  // at the strip's first column
  int64_t stride;
  double* out;  // at the strip's first column of the first row
  int64_t out_stride;
  int64_t part;  // columns of the last register
  bool onto;     // add to what is there
};

// Adds the entries at[r]..at[r + 1] of the R rows from the first on, all of them of length n at least; those beyond
// n are the caller's.
template <int V, int R>
FINESCOPE_INLINE void add_strip(const Unpacked& u, const int64_t* at, int64_t n, const StripArgs& a) {
  const auto load = [&](const double* p, int v) __attribute__((always_inline)) {
    return v == V - 1 ? load_first(p + v * kF64Lanes, a.part) : load_f64(p + v * kF64Lanes);
  };
  VecF64 sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sum[r][v] = a.onto ? load(a.out + r * a.out_stride, v) : VecF64{};
  }
  const uint64_t stride = static_cast<uint64_t>(a.stride);
  for (int64_t i = 0; i < n; ++i) {
    for (int r = 0; r < R; ++r) {
      const double* later = a.panel + u.latent[at[r] + i + kAhead] * stride;
      for (int v = 0; v < V; v += 8 / kF64Lanes) __builtin_prefetch(later + v * kF64Lanes);
      const double* row = a.panel + u.latent[at[r] + i] * stride;
      const double c = u.value[at[r] + i];
      for (int v = 0; v < V; ++v) sum[r][v] += c * load(row, v);
    }
  }
  // The sums stay in registers if nothing but constants picks one of them.
  VecF64 done[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R * V; ++i) done[i / V][i % V] = sum[i / V][i % V];
  for (int r = 0; r < R; ++r) {
    double* out = a.out + r * a.out_stride;
    for (int v = 0; v < V; ++v) {
      // Of the many NaNs one, whatever the processor makes of two that meet.
      const VecF64 s = done[r][v] == done[r][v] ? done[r][v] : VecF64{} + __builtin_nan("");
      if (v < V - 1 || a.part == kF64Lanes) {
        std::memcpy(out + v * kF64Lanes, &s, sizeof(s));
      } else {
        for (int64_t i = 0; i < a.part; ++i) out[v * kF64Lanes + i] = s[i];
      }
    }
  }
}

// A strip of the rows whose entries are at[0]..at[rows].
template <int V>
void strip_rows(const Unpacked& u, const int64_t* at, int64_t rows, StripArgs a) {
  // Enough sums for the latency of an add, if there are registers for them.
  constexpr int R = V <= 2 ? 4 : V == 3 ? 2 : V * 2 + 4 <= FINESCOPE_VECTOR_BYTES / 4 ? 2 : 1;
  int64_t r = 0;
  for (; r + R <= rows; r += R) {
    int64_t n = at[r + 1] - at[r];
    for (int i = 1; i < R; ++i) n = smaller(n, at[r + i + 1] - at[r + i]);
    add_strip<V, R>(u, at + r, n, a);
    StripArgs rest = a;
    rest.onto = true;
    for (int i = 0; i < R; ++i, rest.out += a.out_stride) {
      const int64_t from = at[r + i] + n;
      if (from < at[r + i + 1]) add_strip<V, 1>(u, &from, at[r + i + 1] - from, rest);
    }
    a.out += R * a.out_stride;
  }
  for (; r < rows; ++r, a.out += a.out_stride) add_strip<V, 1>(u, at + r, at[r + 1] - at[r], a);
}

void strips(const SparseMatmulArgs& m, const Unpacked& u, const int64_t* at, int64_t rows, double* out,
            bool onto) {
  static constexpr decltype(&strip_rows<1>) kBy[kStripVecs] = {strip_rows<1>, strip_rows<2>, strip_rows<3>,
                                                               strip_rows<4>, strip_rows<5>, strip_rows<6>};
  // Strips of equal width, rather than narrow ones at the end.
  const int64_t vecs = (m.C + kF64Lanes - 1) / kF64Lanes;
  const int64_t count = (vecs + kStripVecs - 1) / kStripVecs;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t from = vecs * s / count, to = vecs * (s + 1) / count;
    const int64_t column = from * kF64Lanes;
    const int64_t part = smaller(kF64Lanes, m.C - (to - 1) * kF64Lanes);
    kBy[to - from - 1](u, at, rows, {m.panel + column, m.stride, out + column, m.C, part, onto});
  }
}

template <class I, class T>
int64_t matmul_rows(const SparseMatmulArgs& m, int64_t begin, int64_t end) {
  const I* indices = static_cast<const I*>(m.codes.indices);
  const T* values = static_cast<const T*>(m.codes.values);
  const int64_t* start = m.codes.indptr;
  const int64_t all = start[m.codes.rows];
  Unpacked unpacked;
  constexpr int64_t kRows = 64;
  int64_t at[kRows + 1];
  for (int64_t row = begin; row < end;) {
    double* out = m.out + row * m.C;
    int64_t rows = 0;
    while (rows < kRows && row + rows < end && start[row + rows + 1] - start[row] <= kUnpacked) ++rows;
    if (rows > 0) {
      const int64_t first = start[row], n = start[row + rows] - first;
      const int64_t bad = unpacked.load(indices, values, first, n, all, m.codes.latents);
      if (bad >= 0) return bad;
      for (int64_t r = 0; r <= rows; ++r) at[r] = start[row + r] - first;
      strips(m, unpacked, at, rows, out, false);
      row += rows;
      continue;
    }
    // A row that is longer, in pieces.
    for (int64_t first = start[row]; first < start[row + 1]; first += kUnpacked) {
      const int64_t n = smaller(kUnpacked, start[row + 1] - first);
      const int64_t bad = unpacked.load(indices, values, first, n, all, m.codes.latents);
      if (bad >= 0) return bad;
      at[0] = 0, at[1] = n;
      strips(m, unpacked, at, 1, out, first > start[row]);
    }
    ++row;
  }
  return -1;
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
