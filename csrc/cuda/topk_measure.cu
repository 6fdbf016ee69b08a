// Rows as the tensor cores multiply them, and how far that is from what they are.
#include "cuda/launch.h"
#include "cuda/pair_dot.h"
#include "cuda/topk.h"

namespace finescope::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = kThreads / 32;

// Rows whose largest magnitude lies outside are left to the exact scan (of x), or always kept (of w): inside,
// products of two rows and their sums are ordinary float32 numbers.
constexpr float kTameLow = 0x1p-30f, kTameHigh = 0x1p30f;

// A float at or above a float64 number of 0 or more.
__device__ float round_up(double x) {
  return static_cast<float>(x * (1.0 + 0x1p-22));
}

// The sum, or the largest, of one number of each thread of a row: a warp or the whole block, all of whose
// threads call and get it.
template <int kRow, class T, class Combine>
__device__ T combine(T x, const Combine& combine_two) {
  for (int with = 16; with > 0; with /= 2) x = combine_two(x, __shfl_xor_sync(kAll, x, with));
  if (kRow == 32) return x;
  __shared__ T of_warp[kWarps];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) x = combine_two(x, of_warp[warp]);
  __syncthreads();
  return x;
}

// Eight elements side by side, in loads of 16 bytes where the row allows it; zeros behind its end.
template <class T>
struct Eight {
  alignas(16) T at[8];

  __device__ Eight() {}
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

// The fixed-order norm of a row, by a team for each.
template <class T>
__global__ void __launch_bounds__(kThreads) norms_kernel(NormArgs a, bool aligned) {
  for (int64_t base = blockIdx.x * static_cast<int64_t>(kTeams); base < a.n;
       base += gridDim.x * static_cast<int64_t>(kTeams)) {
    const int64_t row = base + threadIdx.x / kTeam;
    // All teams of a warp take part in its exchanges.
    const T* x = static_cast<const T*>(a.rows.data) + (row < a.n ? row : base) * a.rows.stride;
    double square, none;
    pair_dot<false, T>(x, x, a.D, aligned, &square, &none);
    const double norm = sqrt(square);
    if (row >= a.n || threadIdx.x % kTeam != 0) continue;
    if (a.norm != nullptr) a.norm[row] = norm;
    if (a.state != nullptr) a.state[row] = isfinite(norm) ? kScreened : kBad;
    if (a.broken != nullptr && !(isfinite(norm) && (a.bias == nullptr || isfinite(a.bias[row]))))
      *a.broken = 1;
  }
}

// A row's elements in low precision.
template <Copy kCopy>
struct Copier {
  float up = 1.0f, down = 1.0f;  // what an element is multiplied by before it is rounded, and afterwards

  // `largest`: the magnitude of the largest element of a tame row; 0 for others.
  __device__ explicit Copier(float largest) {
    if (largest == 0.0f) return;
    if (kCopy == Copy::f16) {
      // Powers of two, by their exponent fields: 2^14 / 2^e and 2^e / 2^14 where 2^e <= largest < 2^(e+1).
      const uint32_t exponent = float_to_bits(largest) >> 23;
      up = bits_to_float((2 * 127 + 14 - exponent) << 23);
      down = bits_to_float((exponent - 14) << 23);
    }
    if (kCopy == Copy::i8) up = 127.0f / largest, down = largest / 127.0f;
  }

  // Writes eight of them; returns the sum of the squares of their errors.
  template <class T>
  __device__ float write(const Eight<T>& from, void* copies, int64_t first) const {
    union {
      uint16_t half[8];
      int8_t small[8];
      uint4 wide;
      uint2 narrow;
    } to;
    float error_square = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = to_float(from.at[i]);
      float copy;
      if (kCopy == Copy::bf16) {
        const Bf16 nearest = to_bf16(value);
        to.half[i] = nearest.bits, copy = to_float(nearest);
      } else if (kCopy == Copy::f16) {
        const F16 nearest = to_f16(value * up);
        to.half[i] = nearest.bits, copy = to_float(nearest) * down;
      } else {
        const float nearest = fminf(fmaxf(rintf(value * up), -127.0f), 127.0f);
        to.small[i] = static_cast<int8_t>(nearest), copy = nearest * down;
      }
      // Exact, since they lie so close together.
      const float error = value - copy;
      error_square += error * error;
    }
    if (kCopy == Copy::i8) {
      *reinterpret_cast<uint2*>(static_cast<int8_t*>(copies) + first) = to.narrow;
    } else {
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(copies) + first) = to.wide;
    }
    return error_square;
  }
};

// kRow threads for each row: a warp, or all. Elements are held in registers from the first look, for the norm
// and the scale, to the second, for the copy; what does not fit there is read twice.
template <class T, int kRow, Copy kCopy>
__global__ void __launch_bounds__(kThreads) measure_kernel(MeasureArgs a, bool aligned) {
  constexpr int kHeld = 4;
  constexpr int64_t kStep = kRow * 8;
  const int64_t own = threadIdx.x % kRow * 8;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kThreads / kRow) + threadIdx.x / kRow;
  if (row >= a.n) return;
  const T* x = static_cast<const T*>(a.rows.data) + row * a.rows.stride;
  double square = 0.0;
  uint32_t top = 0;  // the largest magnitude's bits: those of infinities and NaN lie above all others
  const auto look = [&](const Eight<T>& some) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = to_float(some.at[i]);
      const double wide = value;
      square = fma(wide, wide, square);  // squares of float32 numbers are exact, and do not overflow
      const uint32_t bits = float_to_bits(value) & 0x7fffffffu;
      top = bits > top ? bits : top;
    }
  };
  Eight<T> held[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t d = h * kStep + own;
    held[h] = Eight<T>(x + d, a.D - d, aligned);
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (h * kStep < a.D) look(held[h]);
  }
  for (int64_t d = kHeld * kStep + own; d < a.D; d += kStep) look(Eight<T>(x + d, a.D - d, aligned));
  square = combine<kRow>(square, [](double one, double other) { return one + other; });
  top = combine<kRow>(top, [](uint32_t one, uint32_t other) { return one > other ? one : other; });
  const float largest = bits_to_float(top);
  const bool finite = top < 0x7f800000u;
  const bool tame = top == 0 || (largest >= kTameLow && largest <= kTameHigh);

  const Copier<kCopy> copier(tame ? largest : 0.0f);
  float error_square = 0.0f;
  if (kCopy != Copy::none) {
    void* copies = static_cast<char*>(a.copies) + row * a.copy_stride * (kCopy == Copy::i8 ? 1 : 2);
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int64_t d = h * kStep + own;
      if (d < a.copy_stride) error_square += copier.write(held[h], copies, d);
    }
    for (int64_t d = kHeld * kStep + own; d < a.copy_stride; d += kStep) {
      error_square += copier.write(Eight<T>(x + d, a.D - d, aligned), copies, d);
    }
    error_square = combine<kRow>(error_square, [](float one, float other) { return one + other; });
  }
  if (own != 0) return;
  const double bias = a.bias == nullptr ? 0.0 : a.bias[row], width = static_cast<double>(a.D);
  const double norm = sqrt(square);
  const double by_norm = a.metric != Metric::cosine ? 1.0 : norm > 0.0 ? 1.0 / norm : 0.0;
  // Sums of squares in float64 are good to D * 2^-52, in float32 to D * 2^-23; a little more covers the
  // roundings here.
  const double size = norm * (1.0 + 0x1p-24 + width * 0x1p-50);
  double error = sqrt(static_cast<double>(error_square)) * (1.0 + (width + 64.0) * 0x1p-23);
  // What is too small for a copy, or for its error's square; in int8, that x̂ is known only as it was rounded.
  error += static_cast<double>(largest) *
           (kCopy == Copy::none ? 0x1p-90 : sqrt(width) * (kCopy == Copy::i8 ? 0x1p-23 : 0x1p-28));
  const double copy_size = size + error;
  Measure out{};
  if (a.state != nullptr) {
    out.error = round_up(error * by_norm);
    out.size = round_up(copy_size * by_norm);
    if (a.state[row] == kScreened && !tame) a.state[row] = kScan;
  } else {
    out.size = round_up(size * by_norm);
    out.error = round_up((error + a.rounding * copy_size) * by_norm);
    // The screen's sums, or the bias in float32, would mean nothing: let it pass always.
    if (!tame || !(fabs(bias) <= 0x1p60) || (bias != 0.0 && fabs(bias) < 0x1p-100)) {
      out.size = out.error = INFINITY;
    }
    if (!finite) out.size = -1.0f;
  }
  out.scale = static_cast<float>(static_cast<double>(copier.down) * by_norm);
  out.bias = static_cast<float>(bias);
  a.out[row] = out;
  if (a.broken != nullptr && !(finite && isfinite(bias))) *a.broken = 1;
}

template <class T, Copy kCopy>
void measure(const MeasureArgs& a, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(a.rows.data) % 16 == 0 &&
                       a.rows.stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  // A warp holds 1024 elements.
  const int64_t at_once = a.D <= 1024 ? kWarps : 1;
  launch("measure", at_once > 1 ? measure_kernel<T, 32, kCopy> : measure_kernel<T, kThreads, kCopy>,
         static_cast<unsigned>((a.n + at_once - 1) / at_once), kThreads, 0, stream, a, aligned);
}

}  // namespace

void launch_norms(const NormArgs& a, cudaStream_t stream) {
  if (a.n == 0) return;
  const int64_t blocks = (a.n + kTeams - 1) / kTeams;
  with_type(a.rows.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch("norms", norms_kernel<T>, static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)), kThreads,
           0, stream, a, aligned<T, kOwn>(a.rows.data, a.rows.stride, a.D));
  });
}

void launch_measure(const MeasureArgs& a, cudaStream_t stream) {
  if (a.n == 0) return;
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    switch (a.copy) {
      case Copy::none:
        return measure<T, Copy::none>(a, stream);
      case Copy::bf16:
        return measure<T, Copy::bf16>(a, stream);
      case Copy::f16:
        return measure<T, Copy::f16>(a, stream);
      case Copy::i8:
        return measure<T, Copy::i8>(a, stream);
    }
  };
  if (a.rows.dtype == DType::f32) run(static_cast<float*>(nullptr));
  if (a.rows.dtype == DType::bf16) run(static_cast<Bf16*>(nullptr));
  if (a.rows.dtype == DType::f16) run(static_cast<F16*>(nullptr));
}

}  // namespace finescope::cuda
