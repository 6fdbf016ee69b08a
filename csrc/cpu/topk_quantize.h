// A row on its way to low precision: normalised, rotated, quantized, its errors measured and rounded up. The
// same for rows of w and of x, so that both sides are transformed alike.
#pragma once

#include <vector>

#include "cpu/topk.h"

namespace finescope {

struct RowQuantizer {
  ScreenKind kind;
  Metric metric;
  int64_t d, depth, units, padded;
  bool rotated;
  float relative;
  std::vector<uint32_t> signs;  // of the rotation

  RowQuantizer(ScreenKind kind, Metric metric, int64_t d);

  struct Loaded {
    bool finite, tame;
    float lost;   // size of elements taken for zeros
    double norm;  // cosine only: the fixed-order norm
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
};

}  // namespace finescope
