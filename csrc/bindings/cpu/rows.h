// Sparse rows as the CPU's kernels read them.
#pragma once

#include <algorithm>

#include "bindings/sparse_operands.h"

namespace finescope {

// Rows whose pointers rise. Latents are checked by whoever reads them first.
struct CheckedRows : CsrOperand {
  CheckedRows(const Tensor& p, const Tensor& i, const Tensor& v, int64_t latents, const char* name,
              const char* op)
      : CsrOperand(p, i, v, latents, op, name) {
    const int64_t N = csr.rows, nnz = i.size(0);
    const int64_t* start = csr.indptr;
    bool rises = start[0] == 0 && start[N] == nnz;
    for (int64_t n = 0; n < N; ++n) rises &= start[n] <= start[n + 1];
    check(rises, name, "_indptr must rise from 0 to nnz=", nnz);
  }

  int64_t latent(int64_t i) const {
    switch (csr.index_type) {
      case IndexType::u16:
        return static_cast<const uint16_t*>(csr.indices)[i];
      case IndexType::i32:
        return static_cast<const int32_t*>(csr.indices)[i];
      default:
        return static_cast<const int64_t*>(csr.indices)[i];
    }
  }

  [[noreturn]] void refuse(int64_t entry, const char* name) const {
    const int64_t row = std::upper_bound(csr.indptr, csr.indptr + csr.rows, entry) - csr.indptr - 1;
    throw std::out_of_range(words(name, "_indices holds ", latent(entry), " in row ", row,
                                  ", which is outside 0..", csr.latents - 1));
  }

  void check_row(int64_t row, const char* name) const {
    for (int64_t i = csr.indptr[row]; i < csr.indptr[row + 1]; ++i) {
      if (latent(i) < 0 || latent(i) >= csr.latents) refuse(i, name);
    }
  }

  void check_latents(const char* name) const {
    for (int64_t row = 0; row < csr.rows; ++row) check_row(row, name);
  }
};

}  // namespace finescope
