// Every latent above its threshold: the engine of topk with thresholds that are known in advance.
//
// What is added to a dot and what it is held against are one number for a screen, the bias less the threshold, with
// 0 as the score to reach. A screen with such a bias and a threshold that never moves lets all of them through;
// their exact dots decide. Rows of which a screen lets too much through, and few rows, are held against w in
// float32 where it lies (above.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/mapped.h"
#include "cpu/topk/internal.h"

namespace finescope {

struct ExceedProblem {
  Matrix x, w;
  int64_t B, N, d;
  const double* bias;       // [N], or null
  const double* threshold;  // [N]
  // Values are scale * dot + offset, [N] each; null: dot + bias.
  const double *scale, *offset;
  bool f64;  // values, else float32

  // Decided as stored, in float64.
  bool exceeds(double dot, int64_t f) const { return (bias ? dot + bias[f] : dot) > threshold[f]; }
  double value(double dot, int64_t f) const {
    if (scale != nullptr) return scale[f] * dot + offset[f];
    return bias != nullptr ? dot + bias[f] : dot;
  }
};

// The rows of a result while their number of entries is not known yet, in pieces that come in any order.
class ExceedRows {
 public:
  struct Piece {
    std::vector<int64_t> row;    // of x
    std::vector<int32_t> count;  // of its entries
    std::vector<int32_t, MappedAllocator<int32_t>> latent;
    std::vector<float, MappedAllocator<float>> narrow;
    std::vector<double, MappedAllocator<double>> wide;

    void reserve(size_t rows, size_t entries, bool f64);
    // The entries of a row, in any order: dots of latents that exceed.
    void add(const ExceedProblem& p, int64_t b, std::vector<Hit>& hits);
    // A row with a NaN or an infinity: one NaN, at latent 0.
    void add_bad(const ExceedProblem& p, int64_t b);
  };

  void take(Piece&& piece);
  int64_t entries() const { return entries_; }
  // Every row as that of one with a NaN.
  void spoil(const ExceedProblem& p);
  // Writes all rows; pieces give their memory back as they are copied, so that entries are held once.
  void write(const ExceedProblem& p, int64_t* indptr, int32_t* latent, void* value);

 private:
  std::mutex lock_;
  std::vector<Piece> pieces_;
  int64_t entries_ = 0;
};

// `packed` may be null; then `choice` decides whether to pack for this call. It must fit p.w, packed for encode.
void exceed(const ExceedProblem& p, const Packed* packed, ScreenChoice choice, const Workers& workers,
            ExceedRows* out);

// The same for rows[0..n) of x, which are finite, without a screen of packed rows; with `screen`, in float32 first.
// False if w is not finite.
bool exceed_directly(const ExceedProblem& p, const int64_t* rows, int64_t n, bool screen,
                     const Workers& workers, ExceedRows* out);

// At least the bias less the threshold: dot + this is above 0 wherever the latent exceeds.
inline double shifted_bias(const ExceedProblem& p, int64_t f) {
  const double b = p.bias != nullptr ? p.bias[f] : 0.0, t = p.threshold[f];
  return b - t + (std::fabs(b) + std::fabs(t)) * 0x1p-50;
}

}  // namespace finescope
