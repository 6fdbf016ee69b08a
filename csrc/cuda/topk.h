// Exact top-k by inner product on CUDA: the kernels behind topk_encode and cosine_topk.
//
// Rows of x are taken some thousand at a time, w in chunks of columns, so that the screened scores of both
// stay in the second-level cache:
//
//   measure  rows of x, or of a chunk of w: low-precision copies, norms and errors        (topk_measure.cu)
//   multiply the copies on tensor cores, into a chunk of scores                              (the binding)
//   filter   keep what may be among the k best; raise the row's threshold as buffers fill    (topk_filter.cu)
//   shrink   the k-th lower bound of all that was kept is the last threshold                 (topk_filter.cu)
//   rescore  what is left, in float64 and the fixed order                                    (topk_exact.cu)
//   scan     every score of the rows that no screen could separate                           (topk_exact.cu)
//   select   the k best, in order                                                            (topk_select.cu)
//
// The bound is that of the CPU engine (cpu/topk/kernels.h). Every row decides for itself, on the device: the
// host never waits, and which kernels run depends on shapes alone.
#pragma once

#include <cstdint>

#include "cuda/stream.h"
#include "kernels.h"

namespace finescope::cuda {

// What is multiplied: the rows as they are, or copies of them. Copies in float16 are made of the row times a
// power of two, which puts its largest element below 2^15: an eighth of the error of bfloat16 at the same
// speed, whatever the size of the row. Copies in int8 are made of the row times 127 / its largest element.
enum class Copy : int32_t { none, bf16, f16, i8 };

// What is known about a row of x or of w, scaled by its norm where the metric is cosine. With x̂ and ŵ the
// copies that were multiplied, their scale taken out again:
//   of x: error >= |x - x̂|, size >= |x̂|;   of w: size >= |w|, error >= |w - ŵ| + rounding * |ŵ|
// so that |<x, w> - screened| <= x.error * w.size + x.size * w.error. A size below 0: never a result.
struct alignas(16) Measure {
  float error, size;
  float scale;  // of the product: the copy's, over |row| (0 if that is 0) where the metric is cosine
  float bias;   // of w
};

enum RowState : int32_t {
  kScreened = 0,
  kBad = 1,   // a NaN or an infinity in x
  kScan = 2,  // to be scanned: out of the screen's range, too many candidates, or a bound that did not hold
};

// Fixed-order norms, and what is not finite. Each result may be null.
struct NormArgs {
  Matrix rows;
  int64_t n, D;
  const double* bias;  // [n], or null
  double* norm;        // [n]
  int32_t* state;      // [n] RowState
  int32_t* broken;     // set to 1 if a row or bias has a NaN or an infinity, or a float64 row is too large
};

struct MeasureArgs {
  Matrix rows;  // any dtype but float64
  int64_t n, D;
  Metric metric;
  double rounding;      // of the multiplication's sums, relative to |x̂| |ŵ|; 0 for rows of x
  const double* bias;   // [n], or null
  Copy copy;            // what is multiplied
  void* copies;         // [n, copy_stride] those, with zeros from D on; null: nothing is written
  int64_t copy_stride;  // a multiple of 16
  Measure* out;         // [n]
  int32_t* state;       // [n] of x: what is not tame is to be scanned; null: rows are those of w
  int32_t* broken;      // as in NormArgs
};

// Everything of one call that the kernels share. Rows are the R rows of x in flight.
struct TopkArgs {
  Matrix x;  // [R, D]
  Matrix w;  // [N, D]
  int64_t R, N, D, k;
  Metric metric;
  const double* bias;      // [N], or null
  double floor;            // scores at or below it are not wanted
  double min_score;        // rounded scores must reach it; -inf: all do
  const int64_t* exclude;  // [R, E] ids (offset like the results) that are not wanted; negative: none
  int64_t E;
  const uint8_t* mask;  // [N], 0: never returned; or null
  int64_t id_offset;

  const Measure* measure;  // [R]
  const double* norm;      // [R]
  int32_t* state;          // [R]
  const int32_t* broken;   // encode: w or bias is not finite; or null

  // Candidates: `parts` buffers of `capacity` for each row, each filled from its own share of the columns.
  int64_t parts, capacity;
  double* word;    // [R, parts, capacity] screened score and bound as two floats; later the exact score
  int32_t* id;     // [R, parts, capacity]
  int32_t* count;  // [R, parts]
  uint32_t* tau;   // [R] key of the threshold: k exact scores are known to reach it
  int64_t* found;  // [R] candidates gathered at the front of the row's buffers

  void* score;  // [R, k] float64 if f64 else float32
  bool f64;
  int64_t* out_id;  // [R, k]
};

// A warp adds so many columns at a time; a buffer needs room for them beside the k best.
inline constexpr int64_t kStep = 128;

void launch_norms(const NormArgs& args, cudaStream_t stream);
void launch_measure(const MeasureArgs& args, cudaStream_t stream);
// tau, count and found of a new set of rows.
void launch_begin(const TopkArgs& args, float open, cudaStream_t stream);
// Screened products [R, stride], float32 or (if integers) int32, of columns first..first+width of w, whose
// measures are given.
struct FilterArgs {
  const void* products;
  bool integers;
  int64_t stride;
  const Measure* columns;
  int64_t first, width;
};
void launch_filter(const TopkArgs& args, const FilterArgs& chunk, cudaStream_t stream);
void launch_shrink(const TopkArgs& args, cudaStream_t stream);
void launch_rescore(const TopkArgs& args, cudaStream_t stream);
// All rows without a NaN are to be scanned.
void launch_scan_all(const TopkArgs& args, cudaStream_t stream);
void launch_scan(const TopkArgs& args, cudaStream_t stream);
void launch_select(const TopkArgs& args, cudaStream_t stream);

// out[q, j] = the exact score of x[q] and w[ids[q, j]], -inf where the id is -1 or the score is not finite.
void launch_pair_scores(const Matrix& x, const Matrix& w, const int64_t* ids, int64_t Q, int64_t k, int64_t N,
                        int64_t D, Metric metric, double* out, cudaStream_t stream);

}  // namespace finescope::cuda
