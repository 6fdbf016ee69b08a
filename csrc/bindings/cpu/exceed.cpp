// torch.ops.finescope.threshold_encode on the CPU.
#include "cpu/topk/exceed.h"

#include <optional>
#include <tuple>

#include "bindings/cpu/packed.h"
#include "bindings/cpu/parallel.h"
#include "bindings/search.h"
#include "bindings/topk_operands.h"

namespace finescope {
namespace {

using Codes = std::tuple<Tensor, Tensor, Tensor>;

Codes run(const ThresholdOperands& o, ScreenChoice choice, const Packed* packed) {
  const ExceedProblem p{o.x.matrix,
                        o.weight.matrix,
                        o.B,
                        o.F,
                        o.D,
                        o.bias ? data<double>(*o.bias) : nullptr,
                        data<double>(o.threshold),
                        o.scale ? data<double>(*o.scale) : nullptr,
                        o.offset ? data<double>(*o.offset) : nullptr,
                        o.f64};
  ExceedRows rows;
  exceed(p, packed, choice, torch_workers(), &rows);
  const Tensor& like = o.x.tensor;
  Tensor indptr = empty_like_options(like, {o.B + 1}, ScalarType::Long);
  Tensor indices = empty_like_options(like, {rows.entries()}, ScalarType::Int);
  Tensor values = empty_like_options(like, {rows.entries()}, o.f64 ? ScalarType::Double : ScalarType::Float);
  rows.write(p, static_cast<int64_t*>(indptr.mutable_data_ptr()),
             static_cast<int32_t*>(indices.mutable_data_ptr()), values.mutable_data_ptr());
  return {values, indices, indptr};
}

Codes threshold_encode(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       const Tensor& threshold, const std::optional<Tensor>& scale,
                       const std::optional<Tensor>& offset, const std::string& screen) {
  const char* op = "threshold_encode";
  return run({x, weight, bias, threshold, scale, offset, op}, screen_choice(screen, op), nullptr);
}

Codes threshold_encode_packed(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              const Tensor& threshold, const Tensor& packed,
                              const std::optional<Tensor>& scale, const std::optional<Tensor>& offset) {
  const char* op = "threshold_encode_packed";
  const Opened opened(packed, weight, Metric::encode, op);
  return run({x, weight, bias, threshold, scale, offset, op}, ScreenChoice::automatic, opened.get);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("threshold_encode", TORCH_BOX(&threshold_encode));
  m.impl("threshold_encode_packed", TORCH_BOX(&threshold_encode_packed));
}

}  // namespace finescope
