// The screen with the registers of NEON; included by the files of the levels that have a kind of
// multiply-accumulate.
//
// A tile is 12 rows by 2 registers of columns: 24 accumulators, two registers of the panel and three that
// hold a unit of each row make 29 of 32. A multiply-accumulate takes one lane of a register for all columns,
// so no row is broadcast. Lanes are part of the instruction: everything over rows is expanded by templates.
#include <arm_neon.h>

#include <utility>

#include "cpu/topk/kernels.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

constexpr int kTileRows = 12;
constexpr int kColumns = 8;
// Rounding of a threshold and of a score, relative: sixteen units in the last place, where fewer than eight
// occur.
constexpr float kRound = 0x1p-20f;

// One unit of n rows (at most 4), and nothing behind them.
template <int n>
inline uint32x4_t load_units(const char* p) {
  const uint32_t* unit = reinterpret_cast<const uint32_t*>(p);
  if constexpr (n == 4) return vld1q_u32(unit);
  if constexpr (n == 1) return vld1q_dup_u32(unit);
  const uint32x4_t two = vcombine_u32(vld1_u32(unit), vdup_n_u32(0));
  if constexpr (n == 2) return two;
  return vld1q_lane_u32(unit + 2, two, 2);
}

template <int MR, int... Quad>
__attribute__((always_inline)) inline void load_rows(const char* p, uint32x4_t* x,
                                                     std::integer_sequence<int, Quad...>) {
  ((x[Quad] = load_units<(MR - 4 * Quad < 4 ? MR - 4 * Quad : 4)>(p + 16 * Quad)), ...);
  // Otherwise GCC loads each lane into a register of its own, and is short of them.
  ([](uint32x4_t& v) __attribute__((always_inline)) { __asm__("" : "+w"(v)); }(x[Quad]), ...);
}

template <class Kind, int... Row>
__attribute__((always_inline)) inline void add_products(typename Kind::Acc (*acc)[2], uint32x4_t w0,
                                                        uint32x4_t w1, const uint32x4_t* x,
                                                        std::integer_sequence<int, Row...>) {
  ((acc[Row][0] = Kind::template mac<Row % 4>(acc[Row][0], w0, x[Row / 4]),
    acc[Row][1] = Kind::template mac<Row % 4>(acc[Row][1], w1, x[Row / 4])),
   ...);
}

// sums[i] = the products of row i of the group with the columns of a panel. A function of its own, so that
// nothing else competes for registers in its loop.
template <class Kind, int MR, int... Row>
__attribute__((noinline)) void multiply_tile(const char* x, const char* panel, int64_t units,
                                             typename Kind::Acc (*sums)[2],
                                             std::integer_sequence<int, Row...> all_rows) {
  typename Kind::Acc acc[MR][2];
  ((acc[Row][0] = acc[Row][1] = typename Kind::Acc{}), ...);
  for (; units > 0; --units) {
    const uint32x4_t w0 = Kind::columns(vld1q_u32(reinterpret_cast<const uint32_t*>(panel)));
    const uint32x4_t w1 = Kind::columns(vld1q_u32(reinterpret_cast<const uint32_t*>(panel + 16)));
    uint32x4_t unit[(MR + 3) / 4];
    load_rows<MR>(x, unit, std::make_integer_sequence<int, (MR + 3) / 4>());
    add_products<Kind>(acc, w0, w1, unit, all_rows);
    panel += 32;
    x += 4 * MR;
  }
  ((sums[Row][0] = acc[Row][0], sums[Row][1] = acc[Row][1]), ...);
}

// The threshold that the score of each of 4 rows must reach, rounded down.
inline float32x4_t lowest_score(const ScreenRows& rows, const ScreenPanels& w, int32_t first, int64_t p) {
  const float32x4_t tau = vld1q_f32(rows.tau + first);
  float32x4_t bound = vmulq_n_f32(vld1q_f32(rows.norm + first), w.err[p]);
  bound = vfmaq_n_f32(bound, vld1q_f32(rows.err + first), w.norm[p]);
  bound = vaddq_f32(bound, vdupq_n_f32(w.slack[p]));
  return vfmsq_n_f32(vsubq_f32(tau, bound), vaddq_f32(vabsq_f32(tau), bound), kRound);
}

// The same for integer accumulators: no score is converted to be compared.
inline int32x4_t lowest_sum(const ScreenRows& rows, const ScreenPanels& w, int32_t first, int64_t p) {
  const float32x4_t inverse = vmulq_n_f32(vld1q_f32(rows.inv_scale + first), w.inv_scale[p]);
  float32x4_t t = vmulq_f32(lowest_score(rows, w, first, p), inverse);
  t = vfmsq_n_f32(vsubq_f32(t, vdupq_n_f32(2.0f)), vabsq_f32(t), kRound);
  return vcvtq_s32_f32(vmaxq_f32(vminq_f32(t, vdupq_n_f32(0x1p30f)), vdupq_n_f32(-0x1p30f)));
}

// Bit c: column c of eight.
inline uint32_t mask_of(uint32x4_t over0, uint32x4_t over1) {
  static const uint8_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x8_t over = vmovn_u16(vcombine_u16(vmovn_u32(over0), vmovn_u32(over1)));
  return vaddv_u8(vand_u8(over, vld1_u8(bits)));
}

template <class Kind, int MR>
void tile(const ScreenRows& rows, const ScreenPanels& w, int32_t first, const char* x, int64_t p) {
  typename Kind::Acc sums[MR][2];
  multiply_tile<Kind, MR>(x, w.packed + p * w.panel_bytes, w.units, sums,
                          std::make_integer_sequence<int, MR>());

  float lowest[kTileRows];
  int32_t lowest_int[kTileRows];
  // With a bias the columns of a row have different thresholds for their sums.
  const bool whole = Kind::kInteger && w.bias == nullptr;
  for (int i = 0; i < MR; i += 4) {
    vst1q_f32(lowest + i, lowest_score(rows, w, first + i, p));
    if (whole) vst1q_s32(lowest_int + i, lowest_sum(rows, w, first + i, p));
  }
  const float32x4_t bias0 = w.bias ? vld1q_f32(w.bias + p * kColumns) : vdupq_n_f32(0.0f);
  const float32x4_t bias1 = w.bias ? vld1q_f32(w.bias + p * kColumns + 4) : vdupq_n_f32(0.0f);
  for (int i = 0; i < MR; ++i) {
    const int32_t row = first + i;
    const float factor = rows.scale[row] * w.scale[p];
    uint32_t mask;
    if (whole) {
      const int32x4_t least = vdupq_n_s32(lowest_int[i]);
      mask = mask_of(Kind::reach(sums[i][0], least), Kind::reach(sums[i][1], least));
    } else {
      const float32x4_t least = vdupq_n_f32(lowest[i]);
      mask = mask_of(vcgeq_f32(Kind::score(sums[i][0], factor, bias0), least),
                     vcgeq_f32(Kind::score(sums[i][1], factor, bias1), least));
    }
    mask &= w.valid[p];
    if (mask == 0) continue;
    float scores[kColumns];
    vst1q_f32(scores, Kind::score(sums[i][0], factor, bias0));
    vst1q_f32(scores + 4, Kind::score(sums[i][1], factor, bias1));
    int32_t count = rows.count[row];
    for (; mask != 0; mask &= mask - 1) {
      const int c = __builtin_ctz(mask);
      rows.score[row * rows.capacity + count] = scores[c];
      rows.column[row * rows.capacity + count] = static_cast<int32_t>(p * kColumns) + c;
      ++count;
    }
    rows.count[row] = count;
    if (count > rows.limit[row]) rows.full(rows.self, row);
  }
}

template <class Kind, int... Row>
inline void screen(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end,
                   std::integer_sequence<int, Row...>) {
  using Tile = void (*)(const ScreenRows&, const ScreenPanels&, int32_t, const char*, int64_t);
  static const Tile tiles[kTileRows] = {tile<Kind, Row + 1>...};
  for (int64_t p = begin; p < end; ++p) {
    if (w.valid[p] == 0) continue;
    for (int32_t g = 0; g < rows.groups; ++g) {
      const int32_t first = rows.group_row[g], n = rows.group_row[g + 1] - first;
      tiles[n - 1](rows, w, first, rows.packed + rows.group_offset[g], p);
    }
  }
}

template <class Kind>
void screen(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Kind>(rows, w, begin, end, std::make_integer_sequence<int, kTileRows>());
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
