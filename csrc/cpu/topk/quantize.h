// A row on its way to low precision: normalised, rotated, quantized, its errors measured and rounded up. The
// same for rows of w and of x, so that both sides are transformed alike.
#pragma once

#include <vector>

#include "cpu/topk/topk.h"

namespace finescope {

struct RowQuantizer {
  ScreenKind kind;
  Metric metric;
  int64_t d, depth, units, padded;
  bool rotated;
  float relative;
  std::vector<uint32_t> signs;  // of the rotation
  // A row that rows have in common, [d], taken out of each; or null.
  const float* centre = nullptr;
  // A row, with zeros up to a multiple of 16, whose dot with each is wanted; or null.
  const double* mean = nullptr;

  RowQuantizer(ScreenKind kind, Metric metric, int64_t d);

  struct Loaded {
    bool finite, tame;
    float lost;   // error of what was done to the row before it is quantized, beyond `relative`
    double norm;  // cosine only: the fixed-order norm
    double dot;   // of the row (cosine: divided by its norm) and `mean`
  };
  // The row, ready to be quantized, in `padded` floats; zeros if it is not finite or not tame.
  Loaded load(const TopkKernels& kernels, const void* row, DType dtype, float* out) const;

  struct Row {
    float norm;  // >= |x̂|
    float err;   // >= |x - x̂|
    float size;  // >= |x|
    int32_t sum;
  };
  Row quantize(const TopkKernels& kernels, const float* row, float scale, float inv_scale, float lost,
               int32_t offset, uint32_t* out) const;

  float arithmetic() const;

 private:
  void take_out_centre(float* row, Loaded& result) const;
};

}  // namespace finescope
