#include "cpu/sparse.h"

namespace finescope {

const SparseKernels& sparse_kernels() {
  static const Variants<SparseKernels> variants = {{
      &scalar::sparse,
#ifdef FINESCOPE_HAVE_AVX2
      &avx2::sparse,
#else
      nullptr,
#endif
#ifdef FINESCOPE_HAVE_AVX512
      &avx512::sparse,
#else
      nullptr,
#endif
  }};
  return variants.active();
}

}  // namespace finescope
