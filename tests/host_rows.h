// Rows of numbers of any dtype for the host programs, read and written by arithmetic instead of by bits.
#pragma once

#include <algorithm>

#include "host.h"
#include "kernels.h"

namespace host {

using namespace finescope;

constexpr DType kAll[] = {DType::f32, DType::f64, DType::bf16, DType::f16};
const char* const kNames[] = {"float32", "float64", "bfloat16", "float16"};

inline const char* name(DType dtype) {
  return kNames[static_cast<int>(dtype)];
}
inline size_t size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// --- stored numbers, by arithmetic instead of bits

// The nearest number with `digits` binary digits and no digit below 2^least; ties to even.
inline double nearest(double x, int digits, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x) - digits + 1, least));
  return std::nearbyint(x / unit) * unit;
}

inline double decoded(DType dtype, const void* p) {
  uint16_t half;
  float single;
  double wide;
  std::memcpy(&half, p, 2);
  switch (dtype) {
    case DType::f64:
      std::memcpy(&wide, p, 8);
      return wide;
    case DType::f32:
      std::memcpy(&single, p, 4);
      return single;
    default:
      break;
  }
  const int bits = dtype == DType::bf16 ? 7 : 10, bias = dtype == DType::bf16 ? 127 : 15;
  const int exponent = (half & 0x7fff) >> bits, fraction = half & ((1 << bits) - 1);
  double magnitude = std::ldexp(fraction, 1 - bias - bits);
  if (exponent > 0) magnitude = std::ldexp(fraction + (1 << bits), exponent - bias - bits);
  if (exponent == 2 * bias + 1) magnitude = fraction ? std::nan("") : HUGE_VAL;
  return half & 0x8000 ? -magnitude : magnitude;
}

// A float64 that `dtype` need not hold; NaN becomes the canonical one.
inline void encode(double x, DType dtype, void* p) {
  const float single = static_cast<float>(x);
  if (dtype == DType::f64) std::memcpy(p, &x, 8);
  if (dtype == DType::f32) std::memcpy(p, &single, 4);
  if (dtype == DType::f64 || dtype == DType::f32) return;
  const int bits = dtype == DType::bf16 ? 7 : 10, bias = dtype == DType::bf16 ? 127 : 15;
  const double magnitude = std::fabs(nearest(x, bits + 1, 1 - bias - bits));
  const int top = 2 * bias + 1;
  int code;
  if (std::isnan(x)) {
    code = (top << bits) | 1 << (bits - 1);
  } else if (magnitude >= std::ldexp(1.0, bias + 1)) {
    code = top << bits;
  } else if (magnitude < std::ldexp(1.0, 1 - bias)) {
    code = static_cast<int>(std::ldexp(magnitude, bias + bits - 1));
  } else {
    const int e = std::ilogb(magnitude);
    code = ((e + bias) << bits) + static_cast<int>(std::ldexp(magnitude, bits - e)) - (1 << bits);
  }
  const uint16_t half = static_cast<uint16_t>(code | (std::signbit(x) && !std::isnan(x) ? 0x8000 : 0));
  std::memcpy(p, &half, 2);
}

// n rows of d numbers, exactly as many bytes as they take.
struct Rows {
  DType dtype;
  int64_t n, d;
  std::vector<char> bytes;

  Rows(DType dtype, int64_t n, int64_t d)
      : dtype(dtype), n(n), d(d), bytes(static_cast<size_t>(n * d) * size_of(dtype)) {
    for (int64_t i = 0; i < n * d; ++i) put(i, random.normal());
  }
  double at(int64_t i) const {
    return decoded(dtype, bytes.data() + static_cast<size_t>(i) * size_of(dtype));
  }
  double at(int64_t row, int64_t column) const { return at(row * d + column); }
  void put(int64_t i, double x) { encode(x, dtype, bytes.data() + static_cast<size_t>(i) * size_of(dtype)); }
  void* data() { return bytes.data(); }
  Matrix matrix() const { return {bytes.data(), d, dtype}; }
};

inline void expect(const char* what, DType dtype, int64_t d, const Rows& got, const Rows& wanted) {
  record(got.bytes.data(), got.bytes.size());
  if (got.bytes == wanted.bytes) return;
  for (int64_t i = 0; i < got.n * got.d; ++i) {
    if (std::memcmp(got.bytes.data() + i * size_of(got.dtype), wanted.bytes.data() + i * size_of(got.dtype),
                    size_of(got.dtype))) {
      return fail("%s %s D=%d: element %d is %.17g, not %.17g", what, name(dtype), int(d), int(i), got.at(i),
                  wanted.at(i));
    }
  }
}

inline std::vector<int64_t> some_indices(int64_t n, int64_t limit) {
  std::vector<int64_t> indices(static_cast<size_t>(n));
  for (int64_t& index : indices) index = random.below(limit);
  return indices;
}

inline double dot(int64_t D, const Rows& x, int64_t i, const Rows& w, int64_t f) {
  return fixed_order_dot(D, [&](int64_t d) { return x.at(i, d); }, [&](int64_t d) { return w.at(f, d); });
}

}  // namespace host
