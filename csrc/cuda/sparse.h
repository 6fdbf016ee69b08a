// Launchers of the kernels on codes. Operands as in kernels.h; pointers are to device memory, and everything
// is queued on `stream` without waiting. An index out of range stops the kernel with a message, as torch's
// own indexing does: looking at the indices on the host would make it wait.
#pragma once

#include "cuda/stream.h"
#include "kernels.h"

namespace finescope::cuda {

void launch_sparse_decode(const SparseDecodeArgs& args, int64_t B, int64_t F, cudaStream_t stream);

}  // namespace finescope::cuda
