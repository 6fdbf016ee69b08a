// The top-k operations with a packed operand, shared by the dispatcher's entries and the classes of the
// module.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "bindings/tensors.h"
#include "cpu/topk/topk.h"

namespace finescope {

// torch's own threads.
Workers torch_workers();

ScreenChoice screen_choice(const std::string& name, const char* op);

std::tuple<Tensor, Tensor> run_encode(const Tensor& x, const Tensor& weight,
                                      const std::optional<Tensor>& bias, int64_t k, ScreenChoice choice,
                                      const Packed* packed, TopkStats* stats);

struct SearchOptions {
  const std::string& metric;
  const std::optional<double>& min_score;
  const std::optional<Tensor>& exclude;
  const std::optional<Tensor>& mask;
  int64_t id_offset;
};

std::tuple<Tensor, Tensor> run_search(const Tensor& queries, const Tensor& corpus, int64_t k,
                                      const SearchOptions& options, ScreenChoice choice, const Packed* packed,
                                      TopkStats* stats);

}  // namespace finescope
