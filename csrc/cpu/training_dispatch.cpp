#include "cpu/training.h"

namespace finescope {

const TrainingKernels& training_kernels() {
  static const Variants<TrainingKernels> variants = {{
      &scalar::training,
#ifdef FINESCOPE_HAVE_AVX2
      &avx2::training,
#else
      nullptr,
#endif
#ifdef FINESCOPE_HAVE_AVX512
      &avx512::training,
#else
      nullptr,
#endif
  }};
  return variants.active();
}

}  // namespace finescope
