// What the CPU bindings that take a code (values and indices [B, K]) share: a look at the indices, the grain of
// work, and room for results as large as weights.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bindings/cpu/parallel.h"
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

// Ask for huge pages behind a large result that is about to be written. Fresh memory is otherwise mapped four
// kilobytes at a time, which costs more than computing, say, a weight gradient does.
inline void prefer_huge_pages(const Tensor& t) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (begin + t.numel() * t.element_size()) / kHuge * kHuge;
  // A hint: where the system does not heed it, nothing changes.
  if (last > first + 2 * kHuge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace finescope
