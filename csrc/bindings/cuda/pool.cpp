// torch.ops.finescope.pool_codes on CUDA.
#include "cuda/pool.h"

#include <tuple>

#include "bindings/cuda/sort.h"
#include "bindings/operands.h"
#include "cuda/sparse.h"

namespace finescope::cuda {
namespace {

std::tuple<Tensor, Tensor> pool(const Tensor& values, const Tensor& indices, const Tensor& offsets,
                                const std::string& reduce, int64_t keep) {
  const OnDevice device(values);
  const PoolOperands o(values, indices, offsets, reduce, keep);
  check(o.N < INT32_MAX, o.op, ": at most 2^31-2 documents at a time, got ", o.N);
  const int64_t entries = o.B * o.args.K;
  const auto room = [&](ScalarType type) { return empty_like_options(values, {entries}, type); };
  const auto longs = [](const Tensor& t) { return static_cast<int64_t*>(t.mutable_data_ptr()); };
  const auto ints = [](const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); };
  Tensor latent = room(ScalarType::Long), document = room(ScalarType::Int);
  launch_pool_keys(o.args, o.B, o.N, longs(latent), ints(document), device.stream());
  // By latent, then, stably, by document.
  const auto [sorted_latent, by_latent] = stable_sort(latent);
  const Tensor taken = room(ScalarType::Int);
  launch_take(ints(document), data<int64_t>(by_latent), entries, ints(taken), device.stream());
  const auto [sorted_document, by_document] = stable_sort(taken);
  const Tensor pooled = room(ScalarType::Double);
  launch_pool_sums(o.args, entries, o.N, data<int64_t>(sorted_latent), data<int64_t>(by_latent),
                   data<int32_t>(sorted_document), data<int64_t>(by_document), longs(latent),
                   static_cast<double*>(pooled.mutable_data_ptr()), device.stream());
  const Tensor start = empty_like_options(values, {o.N + 1}, ScalarType::Long);
  launch_segment_starts(sorted_document.const_data_ptr(), entries, o.N, longs(start), device.stream());
  launch_pool_select(o.args, o.N, data<int64_t>(start), data<int64_t>(latent), data<double>(pooled),
                     device.stream());
  return {o.out_values, o.out_indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, FINESCOPE_CUDA_KEY, m)
{
  m.impl("pool_codes", TORCH_BOX(&pool));
}

}  // namespace finescope::cuda
