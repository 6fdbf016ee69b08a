#include "cpu/topk/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/topk/centre.h"
#include "cpu/topk/internal.h"

namespace finescope {

RowQuantizer::RowQuantizer(ScreenKind kind, Metric metric, int64_t d)
    : kind(kind), metric(metric), d(d), rotated(kind == ScreenKind::int8 && d >= 64) {
  depth = rotated ? round_up(d, 64) : d;
  const int64_t per_unit = kind == ScreenKind::int8 ? 4 : kind == ScreenKind::f32 ? 1 : 2;
  units = (depth + per_unit - 1) / per_unit;
  padded = round_up(depth, 64);
  // Roundings before an element is quantized, in units of 2^-24 of the norm of its row: of the division by
  // the norm or of the subtraction of a mean, of each stage of the transform, and of the reflection across
  // its blocks.
  int64_t block = 64, stages = 6;
  while (rotated && depth % (2 * block) == 0) block *= 2, ++stages;
  relative = static_cast<float>(rotated ? stages + 4 * (depth / block) + 16 : 4) * 0x1p-24f;
  if (!rotated) return;
  // Fixed, without pattern; a change of them would only change which candidates a screen lets through.
  signs.resize(static_cast<size_t>(depth));
  for (int64_t i = 0; i < depth; ++i) {
    uint32_t h = static_cast<uint32_t>(i) * 0x9e3779b1u;
    h = (h ^ (h >> 15)) * 0x85ebca6bu;
    signs[i] = (h ^ (h << 13)) & 0x80000000u;
  }
}

RowQuantizer::Loaded RowQuantizer::load(const TopkKernels& kernels, const void* row, DType dtype,
                                        float* out) const {
  Loaded result{};
  const uint32_t bits = kernels.to_f32(row, dtype, d, out);
  std::fill(out + round_up(d, 16), out + padded, 0.0f);
  float largest;
  std::memcpy(&largest, &bits, 4);
  result.finite = bits < 0x7f800000u;
  result.tame = true;
  if (!result.finite) {
    std::fill(out, out + padded, 0.0f);
    return result;
  }
  if (mean != nullptr) {
    const float* raw = out;
    kernels.dots_f32(mean, &raw, 1, round_up(d, 16), &result.dot);
  }
  if (metric == Metric::cosine) {
    // Worked out in float64: the square of a float32 number neither over- nor underflows there.
    result.norm = std::sqrt(kernels.squared_norm(out, round_up(d, 16)));
    if (result.norm > 0) {
      const double inverse = 1.0 / result.norm;
      result.dot *= inverse;
      if (largest >= kTameLow && largest <= kTameHigh) {
        kernels.multiply(out, round_up(d, 16), static_cast<float>(inverse));
      } else {
        for (int64_t i = 0; i < d; ++i) out[i] = static_cast<float>(static_cast<double>(out[i]) * inverse);
      }
    }
  } else if (largest > kTameHigh) {
    result.tame = false;
    std::fill(out, out + padded, 0.0f);
  } else if (largest < kTameLow && largest > 0) {
    // Too small to matter beside other rows: its elements are taken for zeros and its size for the error.
    result.lost = largest * std::sqrt(static_cast<float>(d)) * 1.001f;
    std::fill(out, out + padded, 0.0f);
  }
  if (centre != nullptr) take_out_centre(out, result);
  if (rotated) kernels.rotate(out, signs.data(), depth);
  return result;
}

void RowQuantizer::take_out_centre(float* row, Loaded& result) const {
  // The division by the norm rounded in proportion to the row as it was, of norm 1.
  if (metric == Metric::cosine) result.lost += 0x1p-21f;
  subtract(row, centre, d);
  float largest = 0.0f;
  for (int64_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(row[i]));
  if (largest == 0.0f || largest >= kTameLow) return;
  result.lost += largest * std::sqrt(static_cast<float>(d)) * 1.001f;
  std::fill(row, row + d, 0.0f);
}

RowQuantizer::Row RowQuantizer::quantize(const TopkKernels& kernels, const float* row, float scale,
                                         float inv_scale, float lost, int32_t offset, uint32_t* out) const {
  const Quantized q = kernels.quantize[static_cast<int>(kind)](row, depth, inv_scale, offset, units, out);
  constexpr float kUp = 1.0f + 0x1p-20f;
  const float whole = (q.norm + q.err) * scale;
  Row result;
  result.norm = q.norm * scale * kUp;
  result.err = (q.err * scale + whole * relative + lost) * kUp;
  result.size = (whole * (1.0f + relative) + lost) * kUp;
  result.sum = q.sum;
  return result;
}

// Rounding of the screen's arithmetic relative to |x̂||ŵ|: of the accumulators, and 2^-20 for turning a sum
// into a score and comparing it.
float RowQuantizer::arithmetic() const {
  const double terms = static_cast<double>(depth) + 2;
  const double roundings = in_whole_numbers(kind) ? 0 : kind == ScreenKind::bf16 ? 2 * terms : terms;
  return static_cast<float>(rounding_of_sums(roundings) + 0x1p-20);
}

}  // namespace finescope
