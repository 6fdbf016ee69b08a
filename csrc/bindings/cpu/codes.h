// What the CPU bindings that take a code (values and indices [B, K]) share: a look at the indices, and work
// split over latents.
#pragma once

#include "bindings/operands.h"
#include "cpu/codes/sparse.h"

namespace finescope {

// Work below this many multiply-adds is not worth a second thread.
inline constexpr int64_t kGrainFlops = 1 << 16;

inline int64_t grain(int64_t per_row) {
  return 1 + kGrainFlops / std::max<int64_t>(per_row, 1);
}

inline void check_indices(const Tensor& indices, int64_t limit, const char* op) {
  const int64_t n = indices.numel();
  if (n == 0) return;
  const int64_t* p = data<int64_t>(indices);
  const int64_t at = sparse_kernels().find_out_of_range(p, n, limit);
  if (at < n) {
    const int64_t width = indices.size(1);
    // std::out_of_range reaches Python as IndexError.
    throw std::out_of_range(words(op, ": indices holds ", p[at], " at [", at / width, ", ", at % width,
                                  "], which is outside 0..", limit - 1));
  }
}

// Run body(begin, end) over the latents 0..F, cut into equal numbers of pairs plus latents: a latent without
// pairs still costs the writing of its row.
template <class Body>
void over_latents(const int64_t* start, int64_t F, int64_t grain, const Body& body) {
  const int64_t cost = start[F] + F;
  const int64_t chunks =
      std::clamp<int64_t>(cost / grain, 1, static_cast<int64_t>(torch::stable::get_num_threads()));
  const auto boundary = [&](int64_t chunk) {
    if (chunk == chunks) return F;
    const int64_t target = cost / chunks * chunk;
    int64_t low = 0, high = F;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (start[middle] + middle < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  parallel(chunks, 1, [&](int64_t begin, int64_t end) { body(boundary(begin), boundary(end)); });
}

}  // namespace finescope
