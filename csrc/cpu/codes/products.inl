// sparse_products: sparse rows times sparse queries, in terms of vec.h; included by sparse.inl.
//
// A row and a query have few latents in common, so the rows are turned over: who holds a latent stands side by
// side. A query then meets nothing but what it has in common with the rows, in runs that the processor foresees, and
// its sums stay in the nearest cache.
#include "kernels.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Rows begin..end by latent, into a.room; returns as products_of_rows. lost[n] tells whether row begin + n has a value
// that isn't finite.
template <class I, class T>
int64_t turn_over(const SparseProductsArgs& a, int64_t begin, int64_t end, uint8_t* lost) {
  using U = std::conditional_t<sizeof(I) == 8, uint64_t, uint32_t>;
  const I* indices = static_cast<const I*>(a.rows.indices);
  const T* values = static_cast<const T*>(a.rows.values);
  const int64_t* start = a.rows.indptr;
  const U limit = static_cast<U>(a.rows.latents);
  // place[f + 1] counts, then begins, then ends latent f, so that at last place[f] begins it.
  uint32_t* place = a.room.start;
  std::memset(place, 0, (a.rows.latents + 2) * sizeof(uint32_t));
  for (int64_t i = start[begin]; i < start[end]; ++i) {
    const U f = static_cast<U>(indices[i]);
    if (f >= limit) return i;
    ++place[f + 2];
  }
  for (int64_t f = 0; f < a.rows.latents; ++f) place[f + 2] += place[f + 1];
  for (int64_t row = begin; row < end; ++row) {
    double rest = 0;
    for (int64_t i = start[row]; i < start[row + 1]; ++i) {
      const double value = to_f64(values[i]);
      rest += value - value;  // 0, or NaN for good
      const uint32_t at = place[static_cast<U>(indices[i]) + 1]++;
      a.room.row[at] = static_cast<uint16_t>(row - begin);
      a.room.value[at] = value;
    }
    lost[row - begin] = rest != 0 || rest != rest;
  }
  return -1;
}

template <class I, class T>
int64_t products_of_rows(const SparseProductsArgs& a, int64_t begin, int64_t end) {
  uint8_t lost[kTurnedRows];
  const int64_t bad = turn_over<I, T>(a, begin, end, lost);
  if (bad >= 0) return bad;
  const int64_t rows = end - begin;
  alignas(64) double sums[kTurnedRows];
  for (int64_t q = 0; q < a.count; ++q) {
    std::memset(sums, 0, rows * sizeof(double));
    for (int64_t i = a.indptr[q]; i < a.indptr[q + 1]; ++i) {
      const double c = a.value[i];
      const uint32_t first = a.room.start[a.latent[i]], last = a.room.start[a.latent[i] + 1];
      for (uint32_t at = first; at < last; ++at) sums[a.room.row[at]] += c * a.room.value[at];
    }
    double* out = a.out + q * a.rows.rows + begin;
    for (int64_t n = 0; n < rows; ++n) {
      out[n] = lost[n] || sums[n] != sums[n] ? __builtin_nan("") : sums[n];
    }
  }
  return -1;
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
