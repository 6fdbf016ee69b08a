// torch.ops.finescope.pool_codes on the CPU.
#include <atomic>
#include <tuple>

#include "bindings/cpu/parallel.h"
#include "bindings/operands.h"

namespace finescope {
namespace {

void check_offsets(const int64_t* offsets, int64_t N, int64_t tokens) {
  check(offsets[0] == 0 && offsets[N] == tokens, "offsets must run from 0 to B=", tokens, ", got ",
        offsets[0], " to ", offsets[N]);
  for (int64_t n = 0; n < N; ++n) check(offsets[n] <= offsets[n + 1], "offsets falls after document ", n);
}

std::tuple<Tensor, Tensor> pool(const Tensor& values, const Tensor& indices, const Tensor& offsets,
                                const std::string& reduce, int64_t keep) {
  const PoolOperands o(values, indices, offsets, reduce, keep);
  const int64_t* start = o.args.offsets;
  check_offsets(start, o.N, o.B);
  std::atomic<int64_t> lowest{0};
  over_runs(start, o.N, 4096 / std::max<int64_t>(o.args.K, 1), [&](int64_t begin, int64_t end) {
    const int64_t low = pool_codes(o.args, begin, end);
    int64_t known = lowest.load();
    while (low < known && !lowest.compare_exchange_weak(known, low)) {
    }
  });
  if (lowest < 0) {
    throw std::out_of_range(
        words("indices holds ", lowest.load(), " with a positive value; latents start at 0"));
  }
  return {o.out_values, o.out_indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("pool_codes", TORCH_BOX(&pool));
}

}  // namespace finescope
