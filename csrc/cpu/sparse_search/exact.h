// Scores of sparse rows as the contract defines them: float64, in ascending latents.
#pragma once

#include <cstring>
#include <vector>

#include "cpu/sparse_search/search.h"

namespace finescope {

// The float64 values of all float16 bits.
const double* half_table();

struct Half {
  const double* table = half_table();
  double operator()(uint16_t bits) const { return table[bits]; }
};
struct Brain {
  double operator()(uint16_t bits) const {
    const uint32_t word = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }
};
struct Same {
  double operator()(double value) const { return value; }
};

// Call body(index pointer, value pointer, conversion) with the types of the rows.
template <class I, class Body>
auto with_values(const Csr& rows, const I* indices, Body body) {
  switch (rows.dtype) {
    case DType::f32:
      return body(indices, static_cast<const float*>(rows.values), Same());
    case DType::f64:
      return body(indices, static_cast<const double*>(rows.values), Same());
    case DType::bf16:
      return body(indices, static_cast<const uint16_t*>(rows.values), Brain());
    default:
      return body(indices, static_cast<const uint16_t*>(rows.values), Half());
  }
}
template <class Body>
auto with_types(const Csr& rows, Body body) {
  switch (rows.index_type) {
    case IndexType::u16:
      return with_values(rows, static_cast<const uint16_t*>(rows.indices), body);
    case IndexType::i32:
      return with_values(rows, static_cast<const int32_t*>(rows.indices), body);
    default:
      return with_values(rows, static_cast<const int64_t*>(rows.indices), body);
  }
}

// Thrown where exact scores meet a row with a latent out of range.
struct SparseRowError {
  int64_t row;
};

// Dot products and norms, for one query at a time.
class ExactSparse {
 public:
  explicit ExactSparse(const SparseSearchArgs& args);
  // Spread query q over the latents; its entries replace those of the query before.
  void load(int64_t q, double norm);
  // Score of the loaded query and a row; `finite` is false for a row that may never be returned.
  double score(int64_t row, bool* finite) const;

 private:
  void check(int64_t row) const;

  const SparseSearchArgs& a_;
  int64_t loaded_ = -1;
  double norm_ = 0.0;
  std::vector<double> dense_;
};

// The norm of a row: the root of the squares summed in ascending latents, float64.
double sparse_norm(const Csr& rows, int64_t row);

}  // namespace finescope
