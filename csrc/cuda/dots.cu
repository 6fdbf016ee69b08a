// Fixed-order dots of chosen pairs of rows: sampled_dot, and the dots of decode_residual.
//
// A warp works on the pairs of one token: what it reads and widens of the token's row serves kPairs pairs per
// thread.
#include "cuda/sparse.h"
#include "cuda/team_dot.h"
#include "cuda/training.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTeams = kWarp / kTeam;  // dots of a warp at a time
constexpr int kPairs = 2;              // dots per thread
constexpr int64_t kPerWarp = kTeams * kPairs;

// The dots of R rows x with kPairs rows w, each complete in the first thread of a team. Lanes past the end
// add +0, which changes no sum that began with +0. All threads of the warp take part.
template <class X, class W, int R, bool kAligned>
__device__ inline void team_dots(const X* const (&x)[R], const W* const (&w)[kPairs], int64_t D,
                                 double (&dot)[R][kPairs]) {
  constexpr bool kExact = sizeof(X) < 8 && sizeof(W) < 8;
  double lane[R][kPairs][kOwn] = {};
#pragma unroll 2
  for (int64_t d = threadIdx.x % kTeam * kOwn; d < D; d += kLanes) {
    double right[kPairs][kOwn];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) load_own(w[p], d, D, kAligned, right[p]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      double left[kOwn];
      load_own(x[r], d, D, kAligned, left);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
#pragma unroll
        for (int o = 0; o < kOwn; ++o) {
          lane[r][p][o] = add_product<kExact>(lane[r][p][o], left[o], right[p][o]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      dot[r][p] = sum_team(lane[r][p]);
    }
  }
}

template <class X, class W, bool kAligned>
__global__ void __launch_bounds__(kThreads) sampled_kernel(SampledDotArgs a, int64_t B, int64_t F) {
  const int64_t per_row = (a.K + kPerWarp - 1) / kPerWarp;
  const int team = threadIdx.x % kWarp / kTeam;
  for (int64_t task = first_warp(); task < B * per_row; task += warp_stride()) {
    const int64_t b = task / per_row, first = task % per_row * kPerWarp + team;
    const X* x[1] = {static_cast<const X*>(a.rows.data) + b * a.rows.stride};
    const W* w[kPairs];
    for (int p = 0; p < kPairs; ++p) {
      // Past the last pair: the last one again.
      const int64_t j = first + p * kTeams < a.K ? first + p * kTeams : a.K - 1;
      const int64_t f = a.indices[b * a.K + j];
      check_index("sampled_dot", f, b, j, F);
      w[p] = static_cast<const W*>(a.weight.data) + f * a.weight.stride;
    }
    double dot[1][kPairs];
    team_dots<X, W, 1, kAligned>(x, w, a.D, dot);
    if (threadIdx.x % kTeam != 0) continue;
    for (int p = 0; p < kPairs; ++p) {
      const int64_t j = first + p * kTeams;
      if (j >= a.K) continue;
      if (a.f64_out) {
        static_cast<double*>(a.out)[b * a.K + j] = dot[0][p];
      } else {
        static_cast<float*>(a.out)[b * a.K + j] = static_cast<float>(dot[0][p]);
      }
    }
  }
}

// dots and errors of decode_residual: pair j = K + r of a token is its residual r with itself.
template <class T, int R, bool kAligned>
__global__ void __launch_bounds__(kThreads) residual_dots_kernel(DecodeResidualArgs a) {
  const int64_t all = a.K + R, per_row = (all + kPerWarp - 1) / kPerWarp;
  const int team = threadIdx.x % kWarp / kTeam;
  for (int64_t task = first_warp(); task < a.B * per_row; task += warp_stride()) {
    const int64_t b = task / per_row, first = task % per_row * kPerWarp + team;
    const T* x[R];
    for (int r = 0; r < R; ++r) x[r] = static_cast<const T*>(a.residual) + (r * a.B + b) * a.D;
    const T* w[kPairs];
    for (int p = 0; p < kPairs; ++p) {
      const int64_t j = first + p * kTeams < all ? first + p * kTeams : all - 1;
      w[p] = j < a.K ? static_cast<const T*>(a.weight.data) + a.indices[b * a.K + j] * a.weight.stride
                     : x[0] + (j - a.K) * a.B * a.D;
    }
    double dot[R][kPairs];
    team_dots<T, T, R, kAligned>(x, w, a.D, dot);
    if (threadIdx.x % kTeam != 0) continue;
    for (int p = 0; p < kPairs; ++p) {
      const int64_t j = first + p * kTeams;
      for (int r = 0; r < R; ++r) {
        const int64_t row = r * a.B + b;
        const T value = static_cast<T>(dot[r][p]);
        if (j < a.K) static_cast<T*>(a.dots)[row * a.K + j] = r == 0 && j >= a.k ? T{0} : value;
        if (j == a.K + r) static_cast<T*>(a.errors)[row] = value;
      }
    }
  }
}

}  // namespace

void launch_sampled_dot(const SampledDotArgs& a, int64_t B, int64_t F, cudaStream_t stream) {
  if (B == 0 || a.K == 0) return;
  const int64_t tasks = B * ((a.K + kPerWarp - 1) / kPerWarp);
  with_type(a.rows.dtype, [&](auto* x_type) {
    using X = std::remove_pointer_t<decltype(x_type)>;
    const bool x_aligned = aligned<X, kOwn>(a.rows.data, a.rows.stride, a.D);
    with_type(a.weight.dtype, [&](auto* w_type) {
      using W = std::remove_pointer_t<decltype(w_type)>;
      const bool wide = x_aligned && aligned<W, kOwn>(a.weight.data, a.weight.stride, a.D);
      launch("sampled_dot", wide ? sampled_kernel<X, W, true> : sampled_kernel<X, W, false>,
             blocks_for(tasks, kWarps), kThreads, 0, stream, a, B, F);
    });
  });
}

void launch_residual_dots(const DecodeResidualArgs& a, cudaStream_t stream) {
  if (a.B == 0) return;
  const int64_t tasks = a.B * ((a.K + a.R + kPerWarp - 1) / kPerWarp);
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool wide = aligned<T, kOwn>(a.weight.data, a.weight.stride, a.D);
    const auto kernel = a.R == 1
                            ? (wide ? residual_dots_kernel<T, 1, true> : residual_dots_kernel<T, 1, false>)
                            : (wide ? residual_dots_kernel<T, 2, true> : residual_dots_kernel<T, 2, false>);
    launch("decode_residual", kernel, blocks_for(tasks, kWarps), kThreads, 0, stream, a);
  };
  a.dtype == DType::f64 ? run(static_cast<double*>(nullptr)) : run(static_cast<float*>(nullptr));
}

}  // namespace finescope::cuda
