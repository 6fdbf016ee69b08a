// Launchers of the steps of pool_codes; see cuda/sparse.h for the rules. Between them the caller sorts, so
// that in the end the held entries stand by document, then latent, then token and slot; those that are not
// held (not positive and finite) come last, as entries of document N.
#pragma once

#include "cuda/stream.h"
#include "kernels.h"

namespace finescope::cuda {

// The keys of every entry; offsets are checked, and the latents of held entries.
void launch_pool_keys(const PoolArgs& args, int64_t B, int64_t N, int64_t* latent, int32_t* document,
                      cudaStream_t stream);
// to[p] = from[order[p]].
void launch_take(const int32_t* from, const int64_t* order, int64_t n, int32_t* to, cudaStream_t stream);
// pooled[p] = what the entries of one document and latent come to, where p is the first of them; negative
// elsewhere. Entry p is by_latent[by_document[p]] of the input; latent[p] its latent afterwards.
void launch_pool_sums(const PoolArgs& args, int64_t entries, int64_t N, const int64_t* sorted_latent,
                      const int64_t* by_latent, const int32_t* document, const int64_t* by_document,
                      int64_t* latent, double* pooled, cudaStream_t stream);
// The strongest of each document, whose entries are start[n]..start[n + 1].
void launch_pool_select(const PoolArgs& args, int64_t N, const int64_t* start, const int64_t* latent,
                        const double* pooled, cudaStream_t stream);

}  // namespace finescope::cuda
