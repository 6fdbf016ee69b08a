// Which sums of a tile become candidates, with 512-bit registers; included by the files of the screens that use them.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics start from a deliberately undefined register and warn about it where they are
// inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "cpu/topk/kernels.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

constexpr int kColumns = 32;

// Rounding of a threshold and of a score, relative: sixteen units in the last place, where fewer than eight
// occur.
constexpr float kRound = 0x1p-20f;

// The threshold that the score of each of 16 rows must reach, rounded down.
inline __m512 lowest_score(const ScreenRows& rows, const ScreenPanels& w, int32_t first, int64_t p) {
  const __m512 tau = _mm512_loadu_ps(rows.tau + first);
  __m512 bound = _mm512_mul_ps(_mm512_loadu_ps(rows.norm + first), _mm512_set1_ps(w.err[p]));
  bound = _mm512_fmadd_ps(_mm512_loadu_ps(rows.err + first), _mm512_set1_ps(w.norm[p]), bound);
  bound = _mm512_add_ps(bound, _mm512_set1_ps(w.slack[p]));
  const __m512 size = _mm512_add_ps(_mm512_abs_ps(tau), bound);
  return _mm512_fnmadd_ps(size, _mm512_set1_ps(kRound), _mm512_sub_ps(tau, bound));
}

// The same for integer accumulators: no score is converted to be compared.
inline __m512i lowest_sum(const ScreenRows& rows, const ScreenPanels& w, int32_t first, int64_t p) {
  const __m512 inverse =
      _mm512_mul_ps(_mm512_loadu_ps(rows.inv_scale + first), _mm512_set1_ps(w.inv_scale[p]));
  __m512 t = _mm512_mul_ps(lowest_score(rows, w, first, p), inverse);
  t = _mm512_fnmadd_ps(_mm512_abs_ps(t), _mm512_set1_ps(kRound), _mm512_sub_ps(t, _mm512_set1_ps(2.0f)));
  // Sums of 16-bit numbers fill 32 bits: below all of them where a row is open, and above all where it is closed
  // (their norms keep them below 46297^2, see whole_avx2.cpp).
  t = _mm512_max_ps(_mm512_min_ps(t, _mm512_set1_ps(0x1.fffffep30f)), _mm512_set1_ps(-0x1p31f));
  return _mm512_cvttps_epi32(t);
}

// Keeps what of the sums of MR rows reaches the rows' thresholds; of these rows only the first n are looked at.
template <class Kind, int MR, bool kBias>
inline __attribute__((always_inline)) void keep_above(const ScreenRows& rows, const ScreenPanels& w,
                                                      int32_t first, int n, int64_t p,
                                                      const typename Kind::Acc (*sums)[2]) {
  constexpr bool kIntegers = Kind::kInteger && !kBias;
  uint32_t mask[MR], any = 0;
  const uint32_t valid = w.valid[p];
  alignas(64) float lowest[16];
  const __m512 bias0 = kBias ? _mm512_loadu_ps(w.bias + p * kColumns) : _mm512_setzero_ps();
  const __m512 bias1 = kBias ? _mm512_loadu_ps(w.bias + p * kColumns + 16) : _mm512_setzero_ps();
  const auto score = [&](typename Kind::Acc sum, __m512 factor, __m512 bias) __attribute__((always_inline)) {
    if constexpr (kBias) return _mm512_fmadd_ps(Kind::to_f32(sum), factor, bias);
    return _mm512_mul_ps(Kind::to_f32(sum), factor);
  };
  if constexpr (kIntegers) {
    _mm512_store_si512(lowest, lowest_sum(rows, w, first, p));
  } else {
    _mm512_store_ps(lowest, lowest_score(rows, w, first, p));
  }
  for (int i = 0; i < MR; ++i) {
    __mmask16 m0, m1;
    if constexpr (kIntegers) {
      int32_t bits;
      __builtin_memcpy(&bits, &lowest[i], 4);
      const __m512i t = _mm512_set1_epi32(bits);
      m0 = _mm512_cmpge_epi32_mask(sums[i][0], t);
      m1 = _mm512_cmpge_epi32_mask(sums[i][1], t);
    } else {
      const __m512 t = _mm512_set1_ps(lowest[i]), factor = _mm512_set1_ps(rows.scale[first + i] * w.scale[p]);
      m0 = _mm512_cmp_ps_mask(score(sums[i][0], factor, bias0), t, _CMP_GE_OQ);
      m1 = _mm512_cmp_ps_mask(score(sums[i][1], factor, bias1), t, _CMP_GE_OQ);
    }
    mask[i] = static_cast<uint32_t>(_mm512_kunpackw(m1, m0)) & valid;
    any |= static_cast<uint32_t>(mask[i] != 0) << i;
  }
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i column = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(p * kColumns)));
  for (uint32_t left = any & ((1u << n) - 1); left != 0; left &= left - 1) {
    const int i = __builtin_ctz(left);
    const int32_t row = first + i;
    const __m512 factor = _mm512_set1_ps(rows.scale[row] * w.scale[p]);
    int64_t at = row * rows.capacity + rows.count[row];
    const auto append = [&](typename Kind::Acc sum, __m512 bias, uint32_t m,
                            int offset) __attribute__((always_inline)) {
      const __mmask16 lanes = static_cast<__mmask16>(m);
      _mm512_storeu_ps(rows.score + at, _mm512_maskz_compress_ps(lanes, score(sum, factor, bias)));
      _mm512_storeu_si512(rows.column + at, _mm512_maskz_compress_epi32(
                                                lanes, _mm512_add_epi32(column, _mm512_set1_epi32(offset))));
      at += __builtin_popcount(m);
    };
    // Compressed in registers and stored whole: compressing to memory is microcoded on some processors.
    // Mostly it is a single column, and then half of that is enough.
    if (mask[i] & 0xffffu) append(sums[i][0], bias0, mask[i] & 0xffffu, 0);
    if (mask[i] >> 16) append(sums[i][1], bias1, mask[i] >> 16, 16);
    const int32_t count = static_cast<int32_t>(at - row * rows.capacity);
    rows.count[row] = count;
    if (count > rows.limit[row]) rows.full(rows.self, row);
  }
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
