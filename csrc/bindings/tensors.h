// What every binding needs: readable errors, dtype translation, strided views.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/subnormals.h"
#include "kernels.h"

namespace finescope {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
std::string words(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Arguments that do not fit; reaches Python as ValueError. Written out rather than left to the checks of
// torch's headers, whose messages begin with a C++ file and line.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::invalid_argument(words(parts...));
}

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline DType float_dtype(const Tensor& t, const char* op, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      fail(op, ": ", name, " must be float32, float64, bfloat16 or float16, not ",
           dtype_name(t.scalar_type()));
  }
}

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline void check_dims(const Tensor& t, int64_t dims, const char* op, const char* name) {
  check(t.dim() == dims, op, ": ", name, " must have ", dims, dims == 1 ? " dimension" : " dimensions",
        ", not shape ", shape_text(t));
}

// Every operand lies where the first one does.
inline void check_device(const Tensor& first, const Tensor& other, const char* op, const char* name) {
  check(first.get_device_index() == other.get_device_index() && first.is_cpu() == other.is_cpu(), op, ": ",
        name, " lies on another device");
}

inline Tensor packed(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Contiguous and of this dtype; the same tensor if it already is.
inline Tensor as(const Tensor& t, ScalarType dtype) {
  const KeepSubnormals keep;
  return packed(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}

// The type that sums over a stored dtype are made in.
inline ScalarType accumulator(DType dtype) {
  return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
}

// A tensor whose rows can be read in place, and how. Only rows whose elements are not adjacent are copied.
struct Rows {
  Tensor tensor;
  Matrix matrix;

  Rows(const Tensor& t, const char* op, const char* name) : tensor(t) {
    check_dims(t, 2, op, name);
    const DType dtype = float_dtype(t, op, name);
    if (t.size(1) > 1 && t.stride(1) != 1) tensor = torch::stable::contiguous(t);
    matrix = {tensor.const_data_ptr(), tensor.stride(0), dtype};
  }
};

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline Tensor empty_like_options(const Tensor& t, std::vector<int64_t> sizes, ScalarType dtype) {
  try {
    return torch::stable::new_empty(t, sizes, dtype);
  } catch (const std::exception& error) {
    // Only that torch threw comes through its C interface; with good sizes there is one cause.
    std::string shape;
    for (const int64_t size : sizes) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    throw std::runtime_error(
        words("finescope: out of memory: no room for a tensor [", shape, "] (", error.what(), ")"));
  }
}

}  // namespace finescope
