// What an instruction set provides to the top-k engine: screens, and primitives on single rows.
//
// A screen multiplies low-precision copies x̂ and ŵ of the rows x and w and keeps what may still be among the
// k best: every pair whose exact score is at least `tau` of its row. That is certain, because
//
//   |<x, w> - <x̂, ŵ>|  <=  |x - x̂| |w|  +  |x̂| |w - ŵ|  +  rounding of the arithmetic done on the way,
//
// and all of these norms were measured when packing, rounded up. The screen decides what is computed exactly,
// never what is returned.
//
// Both operands are packed in units of 32 bits: four int8, two int16 or bfloat16, or one float32 elements of
// a row.
//   panels of w:  [panel][unit][nr]    nr columns (rows of w) side by side: one unit of all of them is two registers
//   groups of x:  [group][run][rows]   up to `RowForm::most` rows: a run is one unit, which is broadcast, or as many
//                                      as a matrix register has in a row
#pragma once

#include <cstdint>

#include "../../kernels.h"  // the contract; "kernels.h" would be this file
#include "cpu/isa.h"

namespace finescope {

enum class ScreenKind : int32_t { f32 = 0, bf16 = 1, int8 = 2, int16 = 3 };
inline constexpr int kScreenKinds = 4;
inline bool in_whole_numbers(ScreenKind kind) {
  return kind == ScreenKind::int8 || kind == ScreenKind::int16;
}
inline constexpr int kMaxTileRows = 14;
// Elements that a kernel may read or write past the end of an array with one entry per row or per candidate.
inline constexpr int kSlack = 32;
// Finite stand-ins for an open and a closed threshold; infinities would make NaNs in the arithmetic of
// bounds.
inline constexpr float kOpen = -1e37f;
inline constexpr float kClosed = 1e37f;

// A block of rows of x. Arrays have an entry per row and kSlack more.
struct ScreenRows {
  const char* packed;
  const int64_t* group_offset;  // [groups] bytes
  const int32_t* group_row;     // [groups + 1] first row of each group
  int32_t groups;
  const float* scale;      // x̂ = scale * units
  const float* inv_scale;  // 1 / scale
  const float* norm;       // >= |x̂|
  const float* err;        // >= |x - x̂|
  const int32_t* start;    // where integer accumulators start: -128 times the sum of the row's units
  float* tau;
  // Candidates: count of them for each row, at row * capacity.
  float* score;
  int32_t* column;
  int32_t* count;
  int32_t* limit;  // call `full` when count has passed this; limit + kSlack <= capacity
  int64_t capacity;
  void* self;
  void (*full)(void* self, int32_t row);
};

struct ScreenPanels {
  const char* packed;
  int64_t panel_bytes;
  int64_t units;
  const float* scale;      // [panels] ŵ = scale * units
  const float* inv_scale;  // [panels]
  const float* norm;       // [panels] >= |w| of every column
  const float* err;        // [panels] >= |w - ŵ| of every column, and the rounding of scores relative to |x̂|
  const float* slack;      // [panels] absolute error of scores, from adding the bias
  const uint32_t* valid;   // [panels] bit c: column c may be a candidate
  const float* bias;       // [panels * nr], or null
};

using Screen = void (*)(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);

// A row in low precision.
struct Quantized {
  float norm;   // >= |x̂| in units of scale
  float err;    // >= |x - x̂| in units of scale
  int32_t sum;  // of the integer elements
};

// How a screen in whole numbers wants its elements. Those of w are stored with `offset` added, which the
// screen takes out again: it starts from -offset times the sum of the elements of x. `chunk` 0: from
// ScreenRows::start. Otherwise from a unit that precedes every `chunk` units of a row of x and holds two
// int16, one for the first two elements of each of these units and one for the others.
struct WholeNumbers {
  // The smallest step at which the elements of a row fit; it ends in zeros up to a multiple of 64.
  float (*step)(const float* row, int64_t d);
  int32_t offset;
  int32_t chunk;
};

// How a screen reads rows of x: groups of at most so many, of each in turn so many units.
struct RowForm {
  int most;
  int run = 1;
  // Bytes of them that stay in the second-level cache while w streams past.
  int64_t resident = int64_t{448} << 10;
};

struct TopkKernels {
  int nr;
  // Rows of x from which on packing pays: it takes as long as screening so many rows where w lies.
  int pack_rows;
  // The share of pairs that, let through by the int8 screen, cost as much as a screen of 16 bits.
  float most_survivors;
  Screen screen[kScreenKinds];  // null: this instruction set has none of that kind
  WholeNumbers whole[kScreenKinds];
  RowForm rows[kScreenKinds];
  // The screen of 16 bits, where there are two.
  ScreenKind wide;

  // The row as float32 (exact for 16-bit rows), zeros up to a multiple of 16; returns the bits of the largest
  // magnitude, so a value of 0x7f800000 or more says that there is an infinity or a NaN.
  uint32_t (*to_f32)(const void* row, DType dtype, int64_t d, float* out);
  void (*to_f64)(const void* row, DType dtype, int64_t d, double* out);
  // out[i] = the fixed-order dot of a and rows[i]; all of them end in zeros up to a multiple of 16.
  void (*dots_f32)(const double* a, const float* const* rows, int64_t n, int64_t d, double* out);
  void (*dots_f64)(const double* a, const double* const* rows, int64_t n, int64_t d, double* out);

  // The fixed-order dot of a row with itself.
  double (*squared_norm)(const float* row, int64_t d);
  // dots_f32 for rows that follow one another in memory and are read once; and, unless it is null, squared[i]
  // = the fixed-order dot of rows[i] with itself.
  void (*stream_dots)(const double* a, const float* const* rows, int64_t n, int64_t d, double* out,
                      double* squared);
  // out[i] = the dot of x and rows[i] in float32 and any order: no element takes part in more than d / 16 +
  // 24 roundings; all of them end in zeros up to a multiple of 16. rows[n..n + more) will be asked for next,
  // and `later` will be x.
  void (*quick_dots)(const float* x, const float* const* rows, int64_t n, int64_t more, const float* later,
                     int64_t d, float* out);

  // out[i * out_stride + j] = the dot of x[i] and rows[j] in float32 and any order: no element takes part in
  // more than d / 4 + 8 roundings, as there are at least four partial sums; rows end in zeros up to a
  // multiple of 16, those of `rows` follow one another at one distance and are read once. out_stride is a
  // multiple of 3 that is not less than n.
  void (*block_dots)(const float* const* x, int64_t nx, const float* const* rows, int64_t n, int64_t d,
                     float* out, int64_t out_stride);
  // The same of each row with itself.
  void (*quick_squares)(const float* const* rows, int64_t n, int64_t d, float* out);

  // row *= factor, in place.
  void (*multiply)(float* row, int64_t d, float factor);
  // An orthogonal transform that spreads every coordinate over all of them; d is a multiple of 64. Each sign
  // is 0 or the sign bit.
  void (*rotate)(float* row, const uint32_t* signs, int64_t d);
  // Low-precision elements of row / scale, `units` of 4 bytes. int8: `offset` is added to each.
  Quantized (*quantize[kScreenKinds])(const float* row, int64_t d, float inv_scale, int32_t offset,
                                      int64_t units, uint32_t* out);
  // panel[u * nr + c] = rows[c * stride + u]: nr rows of units become a panel.
  void (*interleave)(const uint32_t* rows, int64_t stride, int64_t units, int64_t nr, uint32_t* panel);

  // Some value with at least k of the n scores at or above it, and at most `most` unless there are ties.
  float (*about_kth)(const float* score, int64_t n, int64_t k, int64_t most);
  // Keeps, in order, the candidates with a score of at least `lowest`; returns how many.
  int64_t (*keep)(float* score, int32_t* column, int64_t n, float lowest);
  // Copies the scores of at least `lowest`, in order, and columns counted from `first`; returns how many. The
  // outputs have room for n.
  int64_t (*pick)(const float* score, int64_t n, float lowest, int32_t first, float* to_score,
                  int32_t* to_column);
};

// The table of the active instruction set.
const TopkKernels& topk_kernels();

namespace scalar {
extern const TopkKernels topk;
}
namespace avx2 {
extern const TopkKernels topk;
void add_whole_screens(TopkKernels* kernels);
// A screen of 16-bit numbers, and rows for it.
void add_words(TopkKernels* kernels, Screen screen);
}  // namespace avx2
namespace avx_vnni {
void topk_screen_int8(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);
void topk_screen_int16(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);
}  // namespace avx_vnni
namespace avx512 {
extern const TopkKernels topk;
}
namespace neon {
extern const TopkKernels topk;
}
namespace neon_dot {
void topk_screen_int8(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);
}
namespace avx512_vnni {
void topk_screen_int8(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);
void topk_screen_int16(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);
}  // namespace avx512_vnni
namespace avx512_bf16 {
void topk_screen_bf16(const ScreenRows&, const ScreenPanels&, int64_t begin, int64_t end);
}
namespace amx {
void add_screens(TopkKernels* kernels);
}

}  // namespace finescope
