// Packed matrices as the CPU's engine reads them.
#pragma once

#include "bindings/tensors.h"
#include "cpu/topk/topk.h"

namespace finescope {

// The packed matrix in a tensor, if it holds one that fits.
struct Opened {
  Packed packed;
  const Packed* get = nullptr;

  Opened(const Tensor& memory, const Tensor& matrix, Metric metric, const char* op) {
    check(memory.scalar_type() == ScalarType::Byte && memory.dim() == 1 && memory.is_contiguous(), op,
          ": packed must be a contiguous uint8 tensor with one dimension");
    if (memory.numel() == 0) return;
    check_dims(matrix, 2, op, "matrix");
    check(open_packed(static_cast<const char*>(memory.const_data_ptr()), memory.numel(), matrix.size(0),
                      matrix.size(1), metric, &packed),
          op, ": packed does not hold a matrix of shape ", shape_text(matrix), " packed for this");
    get = &packed;
  }
};

}  // namespace finescope
