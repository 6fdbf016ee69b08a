// The contract of the training kernels; see kernels.h for the letters and the rules.
#pragma once

#include "kernels.h"

namespace finescope {

// One step of Adam on rows of width `width`, in place. With g the gradient of a row w, in the accumulator
// type:
//   unit_norm: g = g - <g, w> w
//   m = m + (g - m) * rate1,  v = v * beta2 + rate2 * g * g
//   w = w - step_size * m / (sqrt(v) + eps)
//   unit_norm: w = w / |w|, unless that is 0
// Dots and norms are fixed-order dots (16 float64 partial sums) rounded to the accumulator type.
// With `scales`, step_size and eps are scales[0] and scales[1], read when the kernel runs.
struct AdamArgs {
  void* weight;
  const void* grad;
  void* mean;
  void* square;
  DType dtype;  // of all four
  int64_t width;
  bool unit_norm;
  double rate1, beta2, rate2, step_size, eps;
  const double* scales;  // [2] or null
};

// Reconstructions of `target` from the first k of each token's latents and (R = 2) from all of them:
//   out[b] = sum over j < k of values[b, j] * weight[indices[b, j]], then + bias      (as sparse_decode)
//   residual[0, b] = target[b] - out[b]
//   residual[1, b] = residual[0, b] - sum over j >= k of values[b, j] * weight[indices[b, j]]
//   dots[r, b, j] = <residual[r, b], weight[indices[b, j]]>; 0 where r = 0 and j >= k
//   errors[r, b] = <residual[r, b], residual[r, b]>
// The weight rows of a token are still in cache when its dots are made: they cross the bus once.
struct DecodeResidualArgs {
  DType dtype;             // of values, weight, bias, target and all results: f32 or f64
  const void* values;      // [B, K] contiguous
  const int64_t* indices;  // [B, K] contiguous
  Matrix weight;           // [F, D]
  const void* bias;        // [D] or null
  Matrix target;           // [B, D]
  void* out;               // [B, D]
  void* residual;          // [R, B, D]
  void* dots;              // [R, B, K]
  void* errors;            // [R, B]
  int64_t R, B, K, D, k;
};

// A pair (b, j) of a code; `first` is its value in the encoder's sum, `second` in the decoder's.
template <class T>
struct Pair {
  uint32_t row;       // b
  uint32_t grad_row;  // b + r * B
  T first, second;
};

// Gradients of encoder and decoder rows from one order of the pairs (by latent, then by position):
//   encoder[f, :] = sum of first * x[row, :],  bias[f] = sum of first,  decoder[f, :] = sum of second *
//   grad[grad_row, :]
// over the pairs start[f]..start[f + 1], from +0.
struct WeightGradArgs {
  DType dtype;           // of everything: f32 or f64
  const int64_t* start;  // [F + 1]
  const void* pairs;     // Pair<dtype>[B * K]
  // Strips of `width` columns, one after the other, each contiguous: x [strips, B, width] and grad
  // [strips, rows, width] with rows = R * B. A strip of both stays in a near cache while all latents are
  // summed.
  const void* x;
  const void* grad;
  int64_t B, rows, width;
  void* encoder;  // [F, D]
  void* bias;     // [F]
  void* decoder;  // [F, D]
  int64_t F, D;
};

// The kernels work on rows (elements, for Adam without unit_norm; latents, for gradients) begin..end.
using AdamStep = void (*)(const AdamArgs&, int64_t begin, int64_t end);
using DecodeResidual = void (*)(const DecodeResidualArgs&, int64_t begin, int64_t end);
using WeightGrads = void (*)(const WeightGradArgs&, int64_t begin, int64_t end);

struct TrainingKernels {
  AdamStep adam_step;
  DecodeResidual decode_residual;
  WeightGrads weight_grads;
};

}  // namespace finescope
