// Launchers of the training kernels. Operands as in kernels_training.h; see cuda/sparse.h for the rules.
#pragma once

#include "cuda/stream.h"
#include "kernels_training.h"

namespace finescope::cuda {

// `count` rows (elements, without unit_norm).
void launch_adam(const AdamArgs& args, int64_t count, cudaStream_t stream);

// decode_residual is the one, which writes out and residual, then the other, which reads residual.
void launch_residual_sums(const DecodeResidualArgs& args, int64_t F, cudaStream_t stream);
void launch_residual_dots(const DecodeResidualArgs& args, cudaStream_t stream);

// Pair<dtype>[pairs] in the order `order`; pairs whose slot is `k` or later have rows `later` further on in
// grad.
void launch_training_pairs(const int64_t* order, int64_t pairs, int64_t K, int64_t k, int64_t later,
                           DType dtype, const void* first, const void* second, void* out,
                           cudaStream_t stream);
// One strip: args.width is D.
void launch_weight_grads(const WeightGradArgs& args, cudaStream_t stream);

}  // namespace finescope::cuda
