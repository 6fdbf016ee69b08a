// The screens in whole numbers with 256-bit registers: the tile around a kind of multiply-accumulate; included
// by the files of the levels that have one.
//
// A tile is 6 rows by 2 registers of columns, so 12 of 16 registers accumulate; two of the panel, a broadcast and,
// where products are added by an instruction of their own, a product take the rest. They stay in registers only as a
// local array whose indices are all constants, in a function that does nothing else.
#include <immintrin.h>

#include "cpu/topk/kernels.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

constexpr int kTileRows = 6;
constexpr int kColumns = 16;
constexpr float kRound = 0x1p-20f;  // relative rounding of thresholds and scores, generously

inline __m256 magnitude(__m256 v) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}

// sums[i] = the products of row i of the group with the columns of a panel. With Kind::kChunk, accumulators hold 16
// bits: they are emptied into the sums after so many units, and start again from the unit that precedes these.
template <class Kind, int MR>
__attribute__((noinline)) void multiply_tile(const char* x, const char* panel, int64_t units,
                                             const int32_t* start, __m256i (*sums)[2]) {
  constexpr bool kChunks = Kind::kChunk > 0;
  const __m256i ones = _mm256_set1_epi16(1);
  if (kChunks) {
    for (int i = 0; i < MR; ++i) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  }
  const int64_t chunk = kChunks ? Kind::kChunk : units;
  for (; units > 0; units -= chunk) {
    __m256i acc[MR][2];
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      int32_t from = start[i];
      if (kChunks) __builtin_memcpy(&from, x + 4 * i, 4);
      acc[i][0] = acc[i][1] = _mm256_set1_epi32(from);
    }
    if (kChunks) x += 4 * MR;
    const char* end = panel + 64 * (units < chunk ? units : chunk);
    for (; panel != end; panel += 64) {
      const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
      const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32));
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i) {
        int32_t unit;
        __builtin_memcpy(&unit, x + 4 * i, 4);
        const __m256i xi = _mm256_set1_epi32(unit);
        Kind::add(acc[i][0], w0, xi);
        Kind::add(acc[i][1], w1, xi);
      }
      x += 4 * MR;
    }
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      if (kChunks) {
        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(acc[i][0], ones));
        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(acc[i][1], ones));
      } else {
        sums[i][0] = acc[i][0];
        sums[i][1] = acc[i][1];
      }
    }
  }
}

template <class Kind, int MR>
void tile(const ScreenRows& rows, const ScreenPanels& w, int32_t first, const char* x, int64_t p) {
  alignas(32) __m256i sums[MR][2];
  multiply_tile<Kind, MR>(x, w.packed + p * w.panel_bytes, w.units, rows.start + first, sums);

  // The threshold of each of 8 rows, rounded down, and what makes a score of a sum.
  alignas(32) float lowest[8], factor[8];
  const __m256 tau = _mm256_loadu_ps(rows.tau + first);
  __m256 bound = _mm256_mul_ps(_mm256_loadu_ps(rows.norm + first), _mm256_set1_ps(w.err[p]));
  bound = _mm256_fmadd_ps(_mm256_loadu_ps(rows.err + first), _mm256_set1_ps(w.norm[p]), bound);
  bound = _mm256_add_ps(bound, _mm256_set1_ps(w.slack[p]));
  const __m256 size = _mm256_add_ps(magnitude(tau), bound);
  _mm256_store_ps(lowest, _mm256_fnmadd_ps(size, _mm256_set1_ps(kRound), _mm256_sub_ps(tau, bound)));
  _mm256_store_ps(factor, _mm256_mul_ps(_mm256_loadu_ps(rows.scale + first), _mm256_set1_ps(w.scale[p])));
  const __m256 bias0 = w.bias ? _mm256_loadu_ps(w.bias + p * kColumns) : _mm256_setzero_ps();
  const __m256 bias1 = w.bias ? _mm256_loadu_ps(w.bias + p * kColumns + 8) : _mm256_setzero_ps();

  // Rows in which nothing reaches the threshold, most of them, cost no branch.
  uint32_t mask[MR], any = 0;
  const uint32_t valid = w.valid[p];
  for (int i = 0; i < MR; ++i) {
    const __m256 f = _mm256_set1_ps(factor[i]), least = _mm256_set1_ps(lowest[i]);
    const __m256 s0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][0]), f, bias0);
    const __m256 s1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][1]), f, bias1);
    const int over0 = _mm256_movemask_ps(_mm256_cmp_ps(s0, least, _CMP_GE_OQ));
    const int over1 = _mm256_movemask_ps(_mm256_cmp_ps(s1, least, _CMP_GE_OQ));
    mask[i] = static_cast<uint32_t>(over0 | over1 << 8) & valid;
    any |= static_cast<uint32_t>(mask[i] != 0) << i;
    // The sums are looked at again as what they have become.
    sums[i][0] = _mm256_castps_si256(s0);
    sums[i][1] = _mm256_castps_si256(s1);
  }
  for (; any != 0; any &= any - 1) {
    const int i = __builtin_ctz(any);
    const int32_t row = first + i;
    const char* scores = reinterpret_cast<const char*>(sums[i]);
    int64_t at = row * rows.capacity + rows.count[row];
    for (uint32_t left = mask[i]; left != 0; left &= left - 1, ++at) {
      const int c = __builtin_ctz(left);
      __builtin_memcpy(rows.score + at, scores + 4 * c, 4);
      rows.column[at] = static_cast<int32_t>(p * kColumns) + c;
    }
    const int32_t count = static_cast<int32_t>(at - row * rows.capacity);
    rows.count[row] = count;
    if (count > rows.limit[row]) rows.full(rows.self, row);
  }
}

template <class Kind>
void screen(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  using Tile = void (*)(const ScreenRows&, const ScreenPanels&, int32_t, const char*, int64_t);
  static const Tile tiles[kTileRows] = {tile<Kind, 1>, tile<Kind, 2>, tile<Kind, 3>,
                                        tile<Kind, 4>, tile<Kind, 5>, tile<Kind, 6>};
  for (int64_t p = begin; p < end; ++p) {
    if (w.valid[p] == 0) continue;
    for (int32_t g = 0; g < rows.groups; ++g) {
      const int32_t first = rows.group_row[g], n = rows.group_row[g + 1] - first;
      tiles[n - 1](rows, w, first, rows.packed + rows.group_offset[g], p);
    }
  }
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
