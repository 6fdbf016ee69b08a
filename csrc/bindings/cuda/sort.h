// Sorting by torch: it has a stable radix sort that neither waits for the host nor depends on timing.
#pragma once

#include <array>
#include <optional>
#include <utility>

#include "bindings/cuda/device.h"

namespace finescope::cuda {

// (sorted keys, where each was), ascending along the last dimension.
inline std::pair<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  check(keys.dim() == 0 || keys.size(-1) <= INT32_MAX,
        "a CUDA device sorts at most 2^31 - 1 entries at once, got ", keys.numel(),
        " (B * K): take fewer tokens at a time");
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{-1}),
                                    from(false)};
  must(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION), "sort keys ",
       shape_text(keys));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

}  // namespace finescope::cuda
