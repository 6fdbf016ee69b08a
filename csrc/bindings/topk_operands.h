// Operands of the encoders, checked the same way for every device.
#pragma once

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
    if (b.has_value()) bias = latents_of(*b, op, "bias");
  }

  // A number for each latent, as float64.
  Tensor latents_of(const Tensor& t, const char* op, const char* name) {
    check_device(x.tensor, t, op, name);
    check(t.dim() == 1 && t.size(0) == F, op, ": ", name, " ", shape_text(t), " must have shape [", F, "]");
    f64 = float_dtype(t, op, name) == DType::f64 || f64;
    return as(t, ScalarType::Double);
  }
};

inline void check_encode_k(int64_t k, int64_t F, const char* op) {
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check(k <= F, op, ": k must be at most F=", F, ", got ", k);
}

}  // namespace finescope
