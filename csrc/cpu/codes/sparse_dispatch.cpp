#include "cpu/codes/sparse.h"

namespace finescope {

const SparseKernels& sparse_kernels() {
  static const Variants<SparseKernels> variants = {{FINESCOPE_VARIANTS(sparse)}};
  return variants.active();
}

}  // namespace finescope
