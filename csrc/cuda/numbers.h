// Numbers on the device: elements of the four dtypes, and the fixed-order dot that defines every score.
//
// No product is ever contracted with a sum behind our back (nvcc runs with --fmad=false): kernels that may
// fuse, because the product is exact, say fma.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "kernels.h"

namespace finescope::cuda {

// As constants: device code may not call what the host's limits are made of.
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
template <class T>
inline constexpr T kLargest = std::numeric_limits<T>::max();

// The bits of 16-bit elements, as types to overload on.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

__host__ __device__ inline float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  union {
    uint32_t u;
    float f;
  } both{bits};
  return both.f;
#endif
}
__host__ __device__ inline uint32_t float_to_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  union {
    float f;
    uint32_t u;
  } both{x};
  return both.u;
#endif
}

__host__ __device__ inline float to_float(float x) {
  return x;
}
__host__ __device__ inline float to_float(Bf16 x) {
  return bits_to_float(static_cast<uint32_t>(x.bits) << 16);
}
// Exact for every float16, subnormal, infinite and NaN ones included.
__host__ __device__ inline float to_float(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // The exponent of a float16 read as that of a float32 is 112 too low.
  if ((x.bits & 0x7c00u) == 0x7c00u) return bits_to_float(sign | 0x7f800000u | rest);
  return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 0x1p112f));
}

__host__ __device__ inline double to_double(double x) {
  return x;
}
template <class T>
__host__ __device__ inline double to_double(T x) {
  return static_cast<double>(to_float(x));
}

// To the nearest, ties to even; every NaN becomes the one that the CPU kernels store.
__host__ __device__ inline Bf16 to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t{0x7fc0}};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
__host__ __device__ inline F16 to_f16(float x) {
#if defined(__CUDA_ARCH__)
  uint16_t nearest;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(nearest) : "f"(x));
  return {x == x ? nearest : uint16_t{0x7e00}};
#else
  const uint32_t bits = float_to_bits(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return {uint16_t{0x7e00}};
  // From half way between the largest float16 and the next power of two on, everything is infinite.
  if (size >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  // Below the smallest normal float16 the place of the last bit is fixed: add a number that puts it at the
  // end of a float32, which rounds to even, and read the bits.
  if (size < 0x38800000u) {
    const uint32_t moved = float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u;
    return {static_cast<uint16_t>(sign | moved)};
  }
  const uint32_t rounded = size + 0xfffu + ((size >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
#endif
}

// An element written from the accumulator's type.
__host__ __device__ inline void store(float x, float* to) {
  *to = x;
}
__host__ __device__ inline void store(double x, double* to) {
  *to = x;
}
__host__ __device__ inline void store(float x, Bf16* to) {
  *to = to_bf16(x);
}
__host__ __device__ inline void store(float x, F16* to) {
  *to = to_f16(x);
}

// The type that sums over stored elements are made in.
template <class T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::Type;

__host__ __device__ inline double to_accumulator(double x) {
  return x;
}
template <class T>
__host__ __device__ inline float to_accumulator(T x) {
  return to_float(x);
}

// a * b + sum, where products round by themselves unless they are exact: those of two elements of at most 24
// significant bits are, in float64.
template <bool kExactProducts>
__device__ inline double add_product(double sum, double a, double b) {
  if (kExactProducts) return fma(a, b, sum);
  return sum + a * b;
}

// Lanes of a fixed-order dot; so many threads of a warp work on one pair of rows, and two pairs fit a warp.
inline constexpr int kLanes = 16;

// The sum of the 16 lanes of a half warp, halved 8, 4, 2, 1. Valid in the first lane of each half; all 32
// lanes of the warp must call.
__device__ inline double sum_lanes(double lane_sum) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    lane_sum = lane_sum + __shfl_down_sync(0xffffffffu, lane_sum, half, kLanes);
  }
  return lane_sum;
}

// Lane `lane` of the dot of two rows of width D: d = lane, lane + 16, ...
template <bool kExactProducts, class A, class B>
__device__ inline double lane_dot(const A* a, const B* b, int64_t D, int lane) {
  double sum = 0.0;
#pragma unroll 4
  for (int64_t d = lane; d < D; d += kLanes) {
    sum = add_product<kExactProducts>(sum, to_double(a[d]), to_double(b[d]));
  }
  return sum;
}

// Calls body with a null pointer of the element type of `dtype`.
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(static_cast<float*>(nullptr));
    case DType::f64:
      return body(static_cast<double*>(nullptr));
    case DType::bf16:
      return body(static_cast<Bf16*>(nullptr));
    case DType::f16:
      return body(static_cast<F16*>(nullptr));
  }
}

}  // namespace finescope::cuda
