// The kernels of sparse codes: per-ISA tables and the parts that need no instruction set of their own.
#pragma once

#include "cpu/isa.h"
#include "kernels.h"

namespace finescope {

// The table of the active instruction set.
const SparseKernels& sparse_kernels();

namespace scalar {
extern const SparseKernels sparse;
}
namespace avx2 {
extern const SparseKernels sparse;
}
namespace avx512 {
extern const SparseKernels sparse;
}
namespace neon {
extern const SparseKernels sparse;
}

}  // namespace finescope
