// Rows as the tensor cores multiply them, and how far that is from what they are.
#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/topk.h"

namespace finescope::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroups = kThreads / kLanes;

// Rows whose largest magnitude lies outside are left to the exact scan (of x), or always kept (of w): inside,
// products of two rows and their sums are ordinary float32 numbers.
constexpr float kTameLow = 0x1p-30f, kTameHigh = 0x1p30f;

// A float at or above a float64 number of 0 or more.
__device__ float round_up(double x) {
  return static_cast<float>(x * (1.0 + 0x1p-22));
}

__device__ double sum_warp(double x) {
  for (int with = 16; with > 0; with /= 2) x += __shfl_xor_sync(kAll, x, with);
  return x;
}

// Eight elements side by side, in loads of 16 bytes where the row allows it; zeros behind its end.
template <class T>
struct Eight {
  alignas(16) T at[8];

  __device__ Eight(const T* from, int64_t left, bool aligned) {
    if (aligned && left >= 8) {
      constexpr int kLoads = sizeof(T) / 2;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        reinterpret_cast<uint4*>(at)[i] = reinterpret_cast<const uint4*>(from)[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) at[i] = i < left ? from[i] : T{};
    }
  }
};

// The fixed-order norm of a row, by a half warp for each.
template <class T>
__global__ void __launch_bounds__(kThreads) norms_kernel(NormArgs a) {
  for (int64_t base = blockIdx.x * static_cast<int64_t>(kGroups); base < a.n;
       base += gridDim.x * static_cast<int64_t>(kGroups)) {
    const int64_t row = base + threadIdx.x / kLanes;
    // Both halves of a warp take part in its exchanges.
    const T* x = static_cast<const T*>(a.rows.data) + (row < a.n ? row : base) * a.rows.stride;
    const double norm =
        sqrt(sum_lanes(lane_dot<(sizeof(T) < 8)>(x, x, a.D, static_cast<int>(threadIdx.x % kLanes))));
    if (row >= a.n || threadIdx.x % kLanes != 0) continue;
    if (a.norm != nullptr) a.norm[row] = norm;
    if (a.state != nullptr) a.state[row] = isfinite(norm) ? kScreened : kBad;
    if (a.broken != nullptr && !(isfinite(norm) && (a.bias == nullptr || isfinite(a.bias[row]))))
      *a.broken = 1;
  }
}

// A warp for each row.
template <class T>
__global__ void __launch_bounds__(kThreads) measure_kernel(MeasureArgs a, bool aligned) {
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarps) + threadIdx.x / 32;
  if (row >= a.n) return;
  const T* x = static_cast<const T*>(a.rows.data) + row * a.rows.stride;
  uint16_t* half = a.half == nullptr ? nullptr : a.half + row * a.half_stride;
  double square = 0.0, copy_square = 0.0, error_square = 0.0;
  float largest = 0.0f;
#pragma unroll 2
  for (int64_t d = lane * 8; d < a.D; d += 32 * 8) {
    const Eight<T> loaded(x + d, a.D - d, aligned);
    union {
      uint16_t bits[8];
      uint4 all;
    } rounded;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = to_float(loaded.at[i]);
      const Bf16 nearest = to_bf16(value);
      const float copy = a.copied ? to_float(nearest) : value;
      // The difference of a float32 number and its bfloat16 is one too.
      const double wide = value, wide_copy = copy, error = value - copy;
      square += wide * wide;
      copy_square += wide_copy * wide_copy;
      error_square += error * error;
      largest = fmaxf(largest, fabsf(value));  // a NaN is seen in the sums
      rounded.bits[i] = nearest.bits;
    }
    if (half != nullptr) *reinterpret_cast<uint4*>(half + d) = rounded.all;
  }
  square = sum_warp(square);
  copy_square = sum_warp(copy_square);
  error_square = sum_warp(error_square);
  for (int with = 16; with > 0; with /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, with));
  if (lane != 0) return;
  const double bias = a.bias == nullptr ? 0.0 : a.bias[row];
  // Squares of float32 numbers do not overflow float64.
  const bool finite = isfinite(square);
  const bool tame = largest == 0.0f || (largest >= kTameLow && largest <= kTameHigh);
  // Sums of squares in float64 are good to D * 2^-52; a little more covers that and the roundings here.
  const double room = 1.0 + 0x1p-24 + static_cast<double>(a.D) * 0x1p-50;
  const double norm = sqrt(square);
  const double scale = a.metric != Metric::cosine ? 1.0 : norm > 0.0 ? 1.0 / norm : 0.0;
  const double copy_norm = sqrt(copy_square) * room;
  // What a bfloat16 below the normal range may lose on the way is far below 2^-90 of a tame row.
  const double error = sqrt(error_square) * room + static_cast<double>(largest) * 0x1p-90;
  Measure out{};
  if (a.state != nullptr) {
    out.error = round_up(error * scale);
    out.size = round_up(copy_norm * scale);
    if (a.state[row] == kScreened && !tame) a.state[row] = kScan;
  } else {
    out.size = round_up(norm * room * scale);
    out.error = round_up((error + a.rounding * copy_norm) * scale);
    // The screen's sums, or the bias in float32, would mean nothing: let it pass always.
    if (!tame || !(fabs(bias) <= 0x1p60) || (bias != 0.0 && fabs(bias) < 0x1p-100)) {
      out.size = out.error = INFINITY;
    }
    if (!finite) out.size = -1.0f;
  }
  out.inverse = static_cast<float>(scale);
  out.bias = static_cast<float>(bias);
  a.out[row] = out;
  if (a.broken != nullptr && !(finite && isfinite(bias))) *a.broken = 1;
}

}  // namespace

void launch_norms(const NormArgs& a, cudaStream_t stream) {
  if (a.n == 0) return;
  const int64_t blocks = (a.n + kGroups - 1) / kGroups;
  with_type(a.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("norms", norms_kernel<T>, static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)), kThreads,
           0, stream, a);
  });
}

void launch_measure(const MeasureArgs& a, cudaStream_t stream) {
  if (a.n == 0) return;
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool aligned = reinterpret_cast<uintptr_t>(a.rows.data) % 16 == 0 &&
                         a.rows.stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
    launch("measure", measure_kernel<T>, static_cast<unsigned>((a.n + kWarps - 1) / kWarps), kThreads, 0,
           stream, a, aligned);
  };
  if (a.rows.dtype == DType::f32) run(static_cast<float*>(nullptr));
  if (a.rows.dtype == DType::bf16) run(static_cast<Bf16*>(nullptr));
  if (a.rows.dtype == DType::f16) run(static_cast<F16*>(nullptr));
}

}  // namespace finescope::cuda
