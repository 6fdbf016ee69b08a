// In what order, and how many at a time, a sparse search visits the tiles of its corpus.
#pragma once

#include <cmath>
#include <cstdint>

namespace finescope::cuda {

// A multiplier without a common divisor with `tiles`, so that i -> i * multiplier % tiles meets every tile
// once, and no run of it stays in one place. Below 2^20: the product fits 64 bits.
inline int64_t visiting_step(int64_t tiles) {
  const auto divisor = [](int64_t a, int64_t b) {
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  };
  int64_t step = 640007;
  while (divisor(step, tiles) != 1) ++step;
  return step;
}

// Rows of the next slab, if `seen` rows are behind: `spare` of them may be better than the k-th best so far.
// Of as many rows as were seen, k are expected to be; how many more it may well be follows from how the k-th
// best of a sample varies, and from neighbours' being alike. The first slab is all stored, and fits.
inline int64_t next_slab(int64_t seen, int64_t k, int64_t spare) {
  const double wanted = static_cast<double>(k), most = 0x1p60;
  const double grown =
      static_cast<double>(seen) * static_cast<double>(spare) / (wanted + 12.0 * std::sqrt(wanted) + 60.0);
  return grown < static_cast<double>(spare) ? spare : static_cast<int64_t>(grown < most ? grown : most);
}

}  // namespace finescope::cuda
