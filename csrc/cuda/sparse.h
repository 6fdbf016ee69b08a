// Launchers of the kernels on codes. Operands as in kernels.h; pointers are to device memory, and everything
// is queued on `stream` without waiting. An index out of range stops the kernel with a message, as torch's
// own indexing does: looking at the indices on the host would make it wait.
#pragma once

#include "cuda/stream.h"
#include "kernels.h"

namespace finescope::cuda {

void launch_sparse_decode(const SparseDecodeArgs& args, int64_t B, int64_t F, cudaStream_t stream);
// `entries` are those of all rows.
void launch_sparse_matmul(const SparseMatmulArgs& args, int64_t entries, cudaStream_t stream);
void launch_sampled_dot(const SampledDotArgs& args, int64_t B, int64_t F, cudaStream_t stream);

// The pairs of an index matrix [B, K] by latent, then by position. Keys are what a stable sort orders them
// by: the latents, checked, in 32 bits where F fits.
inline bool narrow_keys(int64_t F) {
  return F <= INT32_MAX;
}
enum class Scatter { rows, values, weight_grads };  // whose indices a message is about
void launch_latent_keys(Scatter op, const int64_t* indices, int64_t B, int64_t K, int64_t F, void* keys,
                        cudaStream_t stream);
// start[f] = the first of `pairs` sorted keys that is f or more, for f = 0..F.
void launch_segment_starts(const void* keys, int64_t pairs, int64_t F, int64_t* start, cudaStream_t stream);

// row[p] and value[p] of the pairs in the order `order`; dtype is that of the values (f32 or f64). `row` may
// be null.
void launch_gather_pairs(const int64_t* order, int64_t pairs, int64_t K, DType dtype, const void* values,
                         int64_t* row, void* value, cudaStream_t stream);
void launch_scatter_rows(const ScatterRowsArgs& args, int64_t F, cudaStream_t stream);
// out[f] = the sum of value[start[f]..start[f + 1]], one after the other from +0.
void launch_segment_sums(const int64_t* start, const void* value, DType dtype, int64_t F, void* out,
                         cudaStream_t stream);

}  // namespace finescope::cuda
