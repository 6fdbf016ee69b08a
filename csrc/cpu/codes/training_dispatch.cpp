#include "cpu/codes/training.h"

namespace finescope {

const TrainingKernels& training_kernels() {
  static const Variants<TrainingKernels> variants = {{FINESCOPE_VARIANTS(training)}};
  return variants.active();
}

}  // namespace finescope
