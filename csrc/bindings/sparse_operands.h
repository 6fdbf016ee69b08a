// Operands of the searches over sparse rows, for every device: checked, except for what is in them.
#pragma once

#include "bindings/operands.h"
#include "bindings/search.h"

namespace finescope {

// Three tensors as rows; whether pointers rise and latents fit is for whoever reads them.
struct CsrOperand {
  Tensor indptr, indices, values;
  Csr csr;

  CsrOperand(const Tensor& p, const Tensor& i, const Tensor& v, int64_t latents, const char* op,
             const char* name)
      : indptr(packed(p)), indices(packed(i)), values(packed(v)) {
    check(p.dim() == 1 && p.size(0) >= 1 && p.scalar_type() == ScalarType::Long, name,
          "_indptr must be int64 [N+1]");
    check(i.dim() == 1 && v.dim() == 1 && i.size(0) == v.size(0), name, "_values must have shape ",
          shape_text(i), " like ", name, "_indices, got ", shape_text(v));
    IndexType type;
    switch (i.scalar_type()) {
      case ScalarType::UInt16:
        type = IndexType::u16;
        break;
      case ScalarType::Int:
        type = IndexType::i32;
        break;
      case ScalarType::Long:
        type = IndexType::i64;
        break;
      default:
        fail(name, "_indices must be uint16, int32 or int64, not ", dtype_name(i.scalar_type()));
    }
    check_device(p, i, op, "indices");
    check_device(p, v, op, "values");
    csr = {data<int64_t>(indptr),
           indices.const_data_ptr(),
           values.const_data_ptr(),
           type,
           float_dtype(v, op, name),
           p.size(0) - 1,
           latents};
  }
};

// What sparse_matmul multiplies: codes [N, F] and a panel [F, C], and room for the result [N, C].
struct MatmulOperands {
  static constexpr const char *op = "sparse_matmul", *name = "codes";
  Rows panel;
  Tensor out;
  int64_t C;

  explicit MatmulOperands(const CsrOperand& codes, const Tensor& given) : panel(given, op, "panel") {
    check(panel.matrix.dtype == DType::f64, op, ": panel must be float64, not ",
          dtype_name(given.scalar_type()));
    check_device(codes.indptr, given, op, "panel");
    C = given.size(1);
    out = empty_like_options(given, {codes.csr.rows, C}, ScalarType::Double);
  }

  SparseMatmulArgs args(const CsrOperand& codes) const {
    return {codes.csr, static_cast<const double*>(panel.matrix.data), panel.matrix.stride,
            static_cast<double*>(out.mutable_data_ptr()), C};
  }
};

inline void check_latents(int64_t num_latents, const char* op) {
  check(num_latents >= 0 && num_latents <= INT32_MAX, op, ": num_latents must be 0 .. 2^31-1, got ",
        num_latents);
}

}  // namespace finescope
