// Reading sparse rows and a panel of queries on the device, and the exact score of a row.
#pragma once

#include <cmath>

#include "cuda/rows.h"
#include "cuda/sparse_bounds.h"
#include "cuda/sparse_search.h"

namespace finescope::cuda {

[[noreturn]] __device__ __attribute__((noinline)) inline void refuse_latent(char side, int64_t latent,
                                                                            int64_t row, int64_t limit) {
  printf("finescope: %c_indices holds %lld in row %lld, which is outside 0..%lld\n", side,
         static_cast<long long>(latent), static_cast<long long>(row), static_cast<long long>(limit - 1));
  stop();
}
[[noreturn]] __device__ __attribute__((noinline)) inline void refuse_pointers(char side, int64_t row,
                                                                              int64_t entries) {
  printf("finescope: %c_indptr must rise from 0 to nnz=%lld, and does not at row %lld\n", side,
         static_cast<long long>(entries), static_cast<long long>(row));
  stop();
}

// A stored latent of a row, found to be in range.
__device__ inline uint32_t in_range(char side, int64_t latent, int64_t row, int64_t limit) {
  if (static_cast<uint64_t>(latent) >= static_cast<uint64_t>(limit)) refuse_latent(side, latent, row, limit);
  return static_cast<uint32_t>(latent);
}

template <class I, class T>
struct Entries {
  const I* indices;
  const T* values;

  __device__ explicit Entries(const Csr& rows)
      : indices(static_cast<const I*>(rows.indices)), values(static_cast<const T*>(rows.values)) {}
  __device__ uint32_t latent(int64_t i) const { return static_cast<uint32_t>(indices[i]); }
  __device__ double value(int64_t i) const { return to_double(values[i]); }
  __device__ float narrow(int64_t i) const { return to_narrow(values[i]); }

 private:
  __device__ static float to_narrow(double x) { return static_cast<float>(x); }
  template <class V>
  __device__ static float to_narrow(V x) {
    return to_float(x);
  }
};

// The same where the types are looked up each time: for what is rare, or waits for memory anyway.
struct AnyEntries {
  const Csr& rows;

  __device__ int64_t stored(int64_t i) const {
    switch (rows.index_type) {
      case IndexType::u16:
        return static_cast<const uint16_t*>(rows.indices)[i];
      case IndexType::i32:
        return static_cast<const int32_t*>(rows.indices)[i];
      default:
        return static_cast<const int64_t*>(rows.indices)[i];
    }
  }
  __device__ uint32_t latent(int64_t i) const { return static_cast<uint32_t>(stored(i)); }
  __device__ double value(int64_t i) const {
    switch (rows.dtype) {
      case DType::f32:
        return static_cast<const float*>(rows.values)[i];
      case DType::f64:
        return static_cast<const double*>(rows.values)[i];
      case DType::bf16:
        return to_double(static_cast<const Bf16*>(rows.values)[i]);
      default:
        return to_double(static_cast<const F16*>(rows.values)[i]);
    }
  }
};

// Entries begin..end of a row lie inside the arrays, the first row's begin and the last one's end at theirs.
__device__ inline void check_row(char side, const Csr& rows, int64_t row, int64_t begin, int64_t end,
                                 int64_t entries) {
  const bool good = begin >= 0 && begin <= end && end <= entries && (row > 0 || begin == 0) &&
                    (row + 1 < rows.rows || end == entries);
  if (!good) refuse_pointers(side, row, entries);
}

// The number of a latent that is set in its word.
__device__ inline uint32_t line_of(const PanelWord& word, uint32_t latent) {
  return word.before + static_cast<uint32_t>(__popc(word.bits & ((1u << (latent % 32)) - 1u)));
}
__device__ inline bool holds(const PanelWord& word, uint32_t latent) {
  return (word.bits >> (latent % 32)) & 1u;
}

// Dot products of entries begin..end with the adjacent queries q..q + kCount of the panel, and the squared
// norm, in the order of the entries, each operation rounded by itself. Latents that a query lacks would add
// zeros, which change no sum that began with +0.
template <int kCount, class E>
__device__ inline void exact_dots(const E& entries, int64_t begin, int64_t end, const PanelWord* words,
                                  const double* exact, int q, double (&dot)[kCount], double* square) {
  for (int c = 0; c < kCount; ++c) dot[c] = 0.0;
  *square = 0.0;
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t latent = entries.latent(i);
    const double value = entries.value(i);
    *square += value * value;
    const PanelWord word = words[latent / 32];
    if (!holds(word, latent)) continue;
    const double* line = exact + static_cast<int64_t>(line_of(word, latent)) * kPanel + q;
    for (int c = 0; c < kCount; ++c) dot[c] += line[c] * value;
  }
}

__device__ inline double exact_score(bool cosine, double dot, double square, double query_norm) {
  if (!cosine) return dot;
  const double norms = query_norm * std::sqrt(square);
  return norms > 0.0 ? dot / norms : 0.0;
}

}  // namespace finescope::cuda
