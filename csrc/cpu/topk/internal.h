// What the files of the top-k engine share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "cpu/topk/topk.h"

namespace finescope {

// Rows whose largest magnitude lies in this range are screened; then products of two of them, and sums of
// these, are ordinary float32 numbers.
inline constexpr float kTameLow = 0x1p-30f, kTameHigh = 0x1p30f;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
inline int64_t element_size(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}
inline const char* row_of(const Matrix& m, int64_t i) {
  return static_cast<const char*>(m.data) + i * m.stride * element_size(m.dtype);
}

// The relative error of a float32 sum of products whose elements take part in so many roundings.
inline double rounding_of_sums(double roundings) {
  const double u = 0x1p-24;
  return 1.01 * roundings * u / (1 - std::min(0.5, roundings * u));
}
// Of a dot that block_dots makes, and of one that quick_dots makes.
inline double rounding_of_dots(int64_t d) {
  return rounding_of_sums(static_cast<double>(d) / 4 + 8);
}
inline double rounding_of_quick_dots(int64_t d) {
  return rounding_of_sums(static_cast<double>(d) / 16 + 24);
}

// A row as float32 or float64, and fixed-order dots with such rows: the kernels by the type they are asked for.
inline void load(const TopkKernels& k, const void* row, DType dtype, int64_t d, float* out) {
  k.to_f32(row, dtype, d, out);
}
inline void load(const TopkKernels& k, const void* row, DType dtype, int64_t d, double* out) {
  k.to_f64(row, dtype, d, out);
}
inline void dots(const TopkKernels& k, const double* a, const float* const* rows, int64_t n, int64_t d,
                 double* out) {
  k.dots_f32(a, rows, n, d, out);
}
inline void dots(const TopkKernels& k, const double* a, const double* const* rows, int64_t n, int64_t d,
                 double* out) {
  k.dots_f64(a, rows, n, d, out);
}

struct Hit {
  double score;
  int64_t id;
};
// The order of results: score descending, then id ascending.
struct Better {
  bool operator()(const Hit& a, const Hit& b) const {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  }
};

// Rows first..first+n of a matrix as float32 with zeros up to a multiple of 16: in place if they are that
// already.
class F32Rows {
 public:
  void assign(const Matrix& m, int64_t d, int64_t first, int64_t n, const Workers& workers);
  const float* operator[](int64_t i) const { return base_ + i * stride_; }

 private:
  const float* base_ = nullptr;
  int64_t stride_ = 0;
  std::vector<float> copy_;
};

// By row of m [n, d]: whether it holds no NaN and no infinity; of float64, whether its squared norm is finite.
std::vector<uint8_t> finite_rows(const Matrix& m, int64_t n, int64_t d, const Workers& workers);

// The exact score, from the fixed-order dot.
inline double exact_score(const TopkProblem& p, double dot, int64_t id, double x_norm, double w_norm) {
  if (p.metric == Metric::encode) return p.bias && !p.bare ? dot + p.bias[id] : dot;
  if (p.metric == Metric::ip) return dot;
  const double norms = x_norm * w_norm;
  return norms > 0 ? dot / norms : 0.0;
}

inline bool excluded(const TopkProblem& p, int64_t b, int64_t id) {
  for (int64_t e = 0; e < p.E; ++e) {
    if (p.exclude[b * p.E + e] == id) return true;
  }
  return false;
}

// Writes row b of the output: hits are reordered, their best k are used.
void write_row(const TopkProblem& p, const TopkOutput& out, int64_t b, Hit* hits, int64_t n);
// Writes the row of an x, or of an encoder, that holds a NaN or an infinity.
void write_bad_row(const TopkProblem& p, const TopkOutput& out, int64_t b);

// Scores rows[0..n) of x against all of w exactly. False if (encode only) w is not finite.
bool scan(const TopkProblem& p, const int64_t* rows, int64_t n, const Workers& workers,
          const TopkOutput& out);

// Screens rows[0..n) of x against w where it lies, in float32; neither is float64. Writes the rows that this
// can separate and adds the others to `again`.
void direct(const TopkProblem& p, const int64_t* rows, int64_t n, const Workers& workers,
            const TopkOutput& out, std::vector<int64_t>* again);

// Rows of x in flight together: their candidates, what is known about each row, and their exact scores.
struct Superblock {
  struct Part {                   // a run of rows that one task screened
    int64_t row, end;             // rows
    int64_t slot;                 // place of the first candidate among all
    std::vector<int32_t> id;      // rows of w, by row of x
    std::vector<int64_t> bucket;  // counts, then places, by range of w
    bool screened = true;

    void start(int64_t first_row, int64_t end_row, int64_t buckets) {
      row = first_row;
      end = end_row;
      id.clear();
      bucket.assign(static_cast<size_t>(buckets), 0);
    }
  };
  int64_t first = 0;  // row of x
  std::vector<Part> parts;
  std::vector<int64_t> begin;   // [rows + 1] place of each row's first candidate
  std::vector<int32_t> count;   // [rows]
  std::vector<double> tau;      // [rows] threshold; kClosed: scan the row
  std::vector<uint8_t> raised;  // [rows] tau is a guess to be confirmed
  std::vector<uint8_t> bad;     // [rows] a NaN or an infinity in x
  std::vector<double> norm64;   // [rows] cosine only
  std::vector<float> size;      // [rows] >= |x|, of what was left of it
  Array<int32_t> pairs;         // memory of the rescoring
  Array<double> exact;          // by place
};

// Ranges of rows of w that pairs are gathered by.
struct Buckets {
  int shift = 0;
  int64_t count;

  explicit Buckets(int64_t rows) {
    while ((rows - 1) >> shift >= 2048) ++shift;
    count = ((rows - 1) >> shift) + 1;
  }
  int64_t of(int64_t id) const { return id >> shift; }
};

}  // namespace finescope
