// The screen with 512-bit registers; included by the files of the levels that have a kind of
// multiply-accumulate.
//
// A tile is 14 rows by 2 registers of columns: 28 accumulators, two registers for the panel and one for the
// broadcast make 31 of 32. They stay in registers only as a local array whose indices are all constants
// (every loop over it is unrolled), in a function that does nothing else; otherwise they live on the stack,
// at a third of the speed.
#include "cpu/topk/candidates512.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// sums[i] = the products of row i of the group with the columns of a panel. A function of its own, so that
// nothing else competes for registers in its loop.
template <class Kind, int MR>
__attribute__((noinline)) void multiply_tile(const char* x, const char* panel, int64_t units,
                                             const int32_t* start, typename Kind::Acc (*sums)[2]) {
  typename Kind::Acc acc[MR][2];
#pragma GCC unroll 14
  for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = Kind::start(start[i]);
  for (int64_t u = 0; u < units; ++u) {
    const __m512i w0 = _mm512_loadu_si512(panel), w1 = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 14
    for (int i = 0; i < MR; ++i) {
      int32_t unit;
      __builtin_memcpy(&unit, x + 4 * i, 4);
      const __m512i xi = _mm512_set1_epi32(unit);
      acc[i][0] = Kind::mac(acc[i][0], w0, xi);
      acc[i][1] = Kind::mac(acc[i][1], w1, xi);
    }
    panel += 128;
    x += 4 * MR;
  }
#pragma GCC unroll 14
  for (int i = 0; i < MR; ++i) {
    sums[i][0] = acc[i][0];
    sums[i][1] = acc[i][1];
  }
}

template <class Kind, int MR, bool kBias>
void tile(const ScreenRows& rows, const ScreenPanels& w, int32_t first, const char* x, int64_t p) {
  alignas(64) typename Kind::Acc sums[MR][2];
  multiply_tile<Kind, MR>(x, w.packed + p * w.panel_bytes, w.units, rows.start + first, sums);
  keep_above<Kind, MR, kBias>(rows, w, first, MR, p, sums);
}

using Tile = void (*)(const ScreenRows&, const ScreenPanels&, int32_t, const char*, int64_t);

template <class Kind, bool kBias>
inline void screen_panels(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  static const Tile tiles[kMaxTileRows] = {
      tile<Kind, 1, kBias>,  tile<Kind, 2, kBias>,  tile<Kind, 3, kBias>,  tile<Kind, 4, kBias>,
      tile<Kind, 5, kBias>,  tile<Kind, 6, kBias>,  tile<Kind, 7, kBias>,  tile<Kind, 8, kBias>,
      tile<Kind, 9, kBias>,  tile<Kind, 10, kBias>, tile<Kind, 11, kBias>, tile<Kind, 12, kBias>,
      tile<Kind, 13, kBias>, tile<Kind, 14, kBias>};
  for (int64_t p = begin; p < end; ++p) {
    if (w.valid[p] == 0) continue;
    for (int32_t g = 0; g < rows.groups; ++g) {
      const int32_t first = rows.group_row[g], n = rows.group_row[g + 1] - first;
      tiles[n - 1](rows, w, first, rows.packed + rows.group_offset[g], p);
    }
  }
}

template <class Kind>
inline void screen(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  if (w.bias != nullptr) {
    screen_panels<Kind, true>(rows, w, begin, end);
  } else {
    screen_panels<Kind, false>(rows, w, begin, end);
  }
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
