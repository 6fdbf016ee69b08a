// threshold_encode on CUDA. Which latents of a row exceed their thresholds is held as one bit for each until
// their number is known, which takes the host's waiting for it: results of unknown size have no other way.
//
//   shift    the bias less the threshold, as a screen adds it
//   measure, multiply    as for topk (topk.h)
//   screen   what the products of a chunk do not rule out is decided exactly, at once
//   scan     all latents of the rows that no screen can separate
//   count    of each row, and where rows begin
//   write    latents and values
#pragma once

#include "cuda/topk.h"

namespace finescope::cuda {

// Everything of one call that the kernels share. Rows are the R rows of x in flight.
struct ThresholdArgs {
  Matrix x;  // [R, D]
  Matrix w;  // [N, D]
  int64_t R, N, D;
  const double* bias;            // [N], or null
  const double* threshold;       // [N]
  const double* shift;           // [N]
  const double *scale, *offset;  // [N] each: values are scale * dot + offset; or null
  const Measure* measure;        // [R]
  int32_t* state;                // [R] RowState
  const int32_t* broken;         // w or bias is not finite
  uint32_t* bits;                // [R, words] latent f of a row is bit f % 32 of word f / 32
  int64_t words;
  int64_t* indptr;  // [R + 1] where rows begin; that of the first is given
};

// shift[f], finite: not less than bias - threshold, up to the ends of what a screen can add; -kNever where
// nothing exceeds the threshold. broken as in NormArgs.
inline constexpr double kNever = 1e300;
void launch_shift(const double* bias, const double* threshold, int64_t N, double* shift, int32_t* broken,
                  cudaStream_t stream);
// Bits of the columns of a chunk, whose first is a multiple of 32, for rows that are screened.
void launch_screen(const ThresholdArgs& args, const FilterArgs& chunk, cudaStream_t stream);
// All rows without a NaN are to be scanned.
void launch_scan_rows(int32_t* state, int64_t R, cudaStream_t stream);
void launch_scan_bits(const ThresholdArgs& args, cudaStream_t stream);
void launch_count(const ThresholdArgs& args, cudaStream_t stream);
// Entries of the rows, from place indptr[row] - `before` on; values float64 if f64 else float32.
void launch_write(const ThresholdArgs& args, int64_t before, int32_t* latent, void* value, bool f64,
                  cudaStream_t stream);
// What lies there once all that is queued is done.
int64_t read_back(const int64_t* at, cudaStream_t stream);

}  // namespace finescope::cuda
