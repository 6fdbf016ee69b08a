// The training kernels: per-ISA tables.
#pragma once

#include "cpu/isa.h"
#include "kernels_training.h"

namespace finescope {

// The table of the active instruction set.
const TrainingKernels& training_kernels();

namespace scalar {
extern const TrainingKernels training;
}
namespace avx2 {
extern const TrainingKernels training;
}
namespace avx512 {
extern const TrainingKernels training;
}
namespace neon {
extern const TrainingKernels training;
}

}  // namespace finescope
