// Rows as the tensor cores multiply them, and how far that is from what they are.
#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/topk.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kLanes;

// Rows whose largest magnitude lies outside are left to the exact scan (of x), or always kept (of w): inside,
// products of two rows and their sums are ordinary float32 numbers.
constexpr float kTameLow = 0x1p-30f, kTameHigh = 0x1p30f;

// A float at or above a float64 number of 0 or more.
__device__ float round_up(double x) {
  return static_cast<float>(x * (1.0 + 0x1p-22));
}

// The sum over the lanes of a row, in any order; in every lane.
__device__ double sum_all(double x) {
  for (int with = kLanes / 2; with > 0; with /= 2) x += __shfl_xor_sync(0xffffffffu, x, with, kLanes);
  return x;
}

// A half warp for each row. Its lanes take the elements in the order of the fixed-order dot, for the norm.
template <class T>
__global__ void __launch_bounds__(kThreads) measure_kernel(MeasureArgs a) {
  constexpr bool kExact = sizeof(T) < 8;
  const int lane = threadIdx.x % kLanes;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRowsPerBlock);
  for (int64_t base = first; base < a.n; base += gridDim.x * static_cast<int64_t>(kRowsPerBlock)) {
    const int64_t row = base + threadIdx.x / kLanes;
    const bool mine = row < a.n;  // all lanes of a warp take part in its sums
    const T* x = static_cast<const T*>(a.rows.data) + (mine ? row : 0) * a.rows.stride;
    uint16_t* half = a.half == nullptr || !mine ? nullptr : a.half + row * a.half_stride;
    double square = 0.0, copy_square = 0.0, error_square = 0.0;
    float largest = 0.0f;
    for (int64_t d = lane; mine && d < a.D; d += kLanes) {
      const double value = to_double(x[d]);
      square = add_product<kExact>(square, value, value);
      if (!a.copied) continue;
      const float single = static_cast<float>(value);
      const Bf16 rounded = to_bf16(single);
      const double copy = to_double(rounded), error = value - copy;
      copy_square += copy * copy;
      error_square += error * error;
      // A NaN is seen in the norm.
      largest = fmaxf(largest, fabsf(single));
      if (half != nullptr) half[d] = rounded.bits;
    }
    if (!a.copied) {
      for (int64_t d = lane; mine && d < a.D; d += kLanes) {
        largest = fmaxf(largest, fabsf(static_cast<float>(to_double(x[d]))));
      }
    }
    // The padding up to the copy's width.
    for (int64_t d = a.D + lane; half != nullptr && d < a.half_stride; d += kLanes) half[d] = 0;
    const double norm = sqrt(sum_lanes(square));
    copy_square = sum_all(copy_square);
    error_square = sum_all(error_square);
    for (int with = kLanes / 2; with > 0; with /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, with, kLanes));
    }
    if (!mine || lane != 0) continue;
    const double bias = a.bias == nullptr ? 0.0 : a.bias[row];
    const bool finite = isfinite(norm);
    const bool tame = largest == 0.0f || (largest >= kTameLow && largest <= kTameHigh);
    // Sums of squares in float64 are good to D * 2^-52; a little more covers that and the roundings here.
    const double room = 1.0 + 0x1p-24 + static_cast<double>(a.D) * 0x1p-50;
    const double scale = a.metric != Metric::cosine ? 1.0 : norm > 0.0 ? 1.0 / norm : 0.0;
    const double copy_norm = (a.copied ? sqrt(copy_square) : norm) * room;
    // What a bfloat16 below the normal range may lose on the way is far below 2^-100 of a tame row.
    const double error = sqrt(error_square) * room + (largest == 0.0f ? 0.0 : largest * 0x1p-90);
    Measure out{};
    if (a.state != nullptr) {
      out.error = a.copied ? round_up(error * scale) : 0.0f;
      out.size = round_up(copy_norm * scale);
    } else {
      out.size = round_up(norm * room * scale);
      out.error = round_up(((a.copied ? error : 0.0) + a.rounding * copy_norm) * scale);
      // The screen's sums would mean nothing: let it pass always.
      if (!tame || fabs(bias) > 0x1p60) out.size = out.error = INFINITY;
      if (!finite) out.size = -1.0f;
    }
    out.inverse = static_cast<float>(scale);
    out.bias = static_cast<float>(bias);
    a.out[row] = out;
    if (a.norm != nullptr) a.norm[row] = norm;
    if (a.state != nullptr) a.state[row] = !finite ? kBad : tame ? kScreened : kScan;
    if (a.broken != nullptr && !(finite && isfinite(bias))) *a.broken = 1;
  }
}

}  // namespace

void launch_measure(const MeasureArgs& a, cudaStream_t stream) {
  if (a.n == 0) return;
  const int64_t blocks = (a.n + kRowsPerBlock - 1) / kRowsPerBlock;
  with_type(a.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("measure", measure_kernel<T>, static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)),
           kThreads, 0, stream, a);
  });
}

}  // namespace finescope::cuda
