// Operands of the encoders, checked the same way for every device.
#pragma once

#include <limits>
#include <optional>

#include "bindings/tensors.h"

namespace finescope {

struct EncodeOperands {
  Rows x, weight;
  std::optional<Tensor> bias;  // float64, contiguous
  int64_t B, F, D;
  bool f64;  // whether any operand is

  EncodeOperands(const Tensor& x_given, const Tensor& w_given, const std::optional<Tensor>& b, const char* op)
      : x(x_given, op, "x"), weight(w_given, op, "weight") {
    B = x_given.size(0), F = w_given.size(0), D = w_given.size(1);
    check_device(x_given, w_given, op, "weight");
    check(x_given.size(1) == D, op, ": weight ", shape_text(w_given), " must have shape [F, ",
          x_given.size(1), "]");
    f64 = x.matrix.dtype == DType::f64 || weight.matrix.dtype == DType::f64;
    if (!b.has_value()) return;
    bias = by_latent(*b, op, "bias");
    f64 = f64 || b->scalar_type() == ScalarType::Double;
  }

  // A number for each latent, as float64.
  Tensor by_latent(const Tensor& t, const char* op, const char* name) const {
    check_device(x.tensor, t, op, name);
    float_dtype(t, op, name);
    check(t.dim() == 1 && t.size(0) == F, op, ": ", name, " ", shape_text(t), " must have shape [", F, "]");
    return as(t, ScalarType::Double);
  }
};

// What threshold_encode takes beside them. Values have the dtype of theirs.
struct ThresholdOperands : EncodeOperands {
  Tensor threshold;
  std::optional<Tensor> scale, offset;

  ThresholdOperands(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& b, const Tensor& t,
                    const std::optional<Tensor>& s, const std::optional<Tensor>& o, const char* op)
      : EncodeOperands(x, weight, b, op), threshold(by_latent(t, op, "threshold")) {
    check(F <= std::numeric_limits<int32_t>::max(), op, ": weight has ", F, " rows, more than 2^31 - 1");
    check(s.has_value() == o.has_value(), op, ": scale and offset belong together");
    if (s.has_value()) scale = by_latent(*s, op, "scale"), offset = by_latent(*o, op, "offset");
  }
};

inline void check_encode_k(int64_t k, int64_t F, const char* op) {
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check(k <= F, op, ": k must be at most F=", F, ", got ", k);
}

}  // namespace finescope
