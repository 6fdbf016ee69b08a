// torch.ops.finescope.pool_codes on the CPU.
#include <atomic>
#include <tuple>

#include "bindings/tensors.h"

namespace finescope {
namespace {

Reduce reduction(const std::string& name) {
  if (name == "mean") return Reduce::mean;
  if (name == "max") return Reduce::max;
  if (name == "sum") return Reduce::sum;
  if (name == "sqrt_mean") return Reduce::sqrt_mean;
  if (name == "count") return Reduce::count;
  fail("reduce must be one of 'mean', 'max', 'sum', 'sqrt_mean', 'count', got '", name, "'");
}

void check_offsets(const int64_t* offsets, int64_t N, int64_t tokens) {
  check(offsets[0] == 0 && offsets[N] == tokens, "offsets must run from 0 to B=", tokens, ", got ",
        offsets[0], " to ", offsets[N]);
  for (int64_t n = 0; n < N; ++n) check(offsets[n] <= offsets[n + 1], "offsets falls after document ", n);
}

std::tuple<Tensor, Tensor> pool(const Tensor& values, const Tensor& indices, const Tensor& offsets,
                                const std::string& reduce, int64_t keep) {
  const char* op = "pool_codes";
  check_dims(values, 2, op, "values");
  float_dtype(values, op, "values");
  check(indices.scalar_type() == ScalarType::Long && offsets.scalar_type() == ScalarType::Long, op,
        ": indices and offsets must be int64");
  check(shape_text(indices) == shape_text(values), op, ": indices must have shape ", shape_text(values),
        " like values, got ", shape_text(indices));
  check(offsets.dim() == 1 && offsets.size(0) >= 1, op, ": offsets must have shape [N+1], got ",
        shape_text(offsets));
  check(keep >= 0, op, ": keep must be at least 0, got ", keep);
  const Reduce reduced = reduction(reduce);
  const Tensor starts = packed(offsets), index = packed(indices);
  const int64_t N = offsets.size(0) - 1, K = values.size(1);
  const int64_t* start = data<int64_t>(starts);
  check_offsets(start, N, values.size(0));
  const bool f64 = values.scalar_type() == ScalarType::Double;
  const Tensor coefficients = as(values, f64 ? ScalarType::Double : ScalarType::Float);
  Tensor out_values = empty_like_options(values, {N, keep}, ScalarType::Float);
  Tensor out_indices = empty_like_options(values, {N, keep}, ScalarType::Long);
  const PoolArgs args{coefficients.const_data_ptr(),
                      data<int64_t>(index),
                      f64,
                      start,
                      K,
                      reduced,
                      keep,
                      static_cast<float*>(out_values.mutable_data_ptr()),
                      static_cast<int64_t*>(out_indices.mutable_data_ptr())};
  // Chunks of equal numbers of tokens: documents differ in length by orders of magnitude.
  const int64_t tokens = values.size(0) + N;
  const int64_t chunks = std::clamp<int64_t>(tokens * std::max<int64_t>(K, 1) / 4096, 1,
                                             static_cast<int64_t>(torch::stable::get_num_threads()));
  const auto boundary = [&](int64_t chunk) {
    if (chunk == chunks) return N;
    int64_t low = 0, high = N;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (start[middle] + middle < tokens / chunks * chunk) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  std::atomic<int64_t> lowest{0};
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    const int64_t low = pool_codes(args, boundary(begin), boundary(end));
    int64_t known = lowest.load();
    while (low < known && !lowest.compare_exchange_weak(known, low)) {
    }
  });
  if (lowest < 0) {
    throw std::out_of_range(
        words("indices holds ", lowest.load(), " with a positive value; latents start at 0"));
  }
  return {out_values, out_indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("pool_codes", TORCH_BOX(&pool));
}

}  // namespace finescope
