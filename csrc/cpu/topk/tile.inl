// The float32 screen in terms of vec.h, for the baseline and AVX2: tiles of 6 rows by 2 registers of columns,
// so 12 of 16 registers accumulate.
#include "cpu/topk/rows.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

constexpr int kTileRows = 6;
constexpr int kColumns = 2 * kF32Lanes;
// Measured with D between 384 and 2048.
#if defined(__AVX2__)
constexpr int kPackRows = 96;
#else
constexpr int kPackRows = 512;
#endif
// Measured with D between 512 and 4096.
constexpr float kSurvivors = 0.03f;
constexpr float kRound = 0x1p-20f;  // relative rounding of thresholds and scores, generously

// Bit l: lane l of the comparison is true.
FINESCOPE_INLINE uint32_t mask_of(VecI32 v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bits_as<__m256>(v)));
#else
  uint32_t mask = 0;
  for (int l = 0; l < kF32Lanes; ++l) mask |= static_cast<uint32_t>(v[l] & 1) << l;
  return mask;
#endif
}

// sums[i] = the products of row i of the group with the columns of a panel. Accumulators stay in registers
// only as a local array whose indices are all constants, in a function that does nothing else.
template <int MR>
__attribute__((noinline)) void multiply_tile(const float* x, const float* panel, int64_t units,
                                             VecF32 (*sums)[2]) {
  VecF32 acc[MR][2];
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = VecF32{};
  for (; units > 0; --units) {
    const VecF32 w0 = load_f32(panel), w1 = load_f32(panel + kF32Lanes);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      const VecF32 xi = splat(x[i]);
      acc[i][0] = add_product_f32(acc[i][0], w0, xi);
      acc[i][1] = add_product_f32(acc[i][1], w1, xi);
    }
    panel += kColumns;
    x += MR;
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i) {
    sums[i][0] = acc[i][0];
    sums[i][1] = acc[i][1];
  }
}

template <int MR>
void tile(const ScreenRows& rows, const ScreenPanels& w, int32_t first, const char* packed_rows, int64_t p) {
  VecF32 sums[MR][2];
  multiply_tile<MR>(reinterpret_cast<const float*>(packed_rows),
                    reinterpret_cast<const float*>(w.packed + p * w.panel_bytes), w.units, sums);
  const VecF32 bias0 = w.bias ? load_f32(w.bias + p * kColumns) : VecF32{};
  const VecF32 bias1 = w.bias ? load_f32(w.bias + p * kColumns + kF32Lanes) : VecF32{};
  for (int i = 0; i < MR; ++i) {
    const int32_t row = first + i;
    const float tau = rows.tau[row];
    const float bound = rows.err[row] * w.norm[p] + rows.norm[row] * w.err[p] + w.slack[p];
    const float lowest = tau - bound - (__builtin_fabsf(tau) + bound) * kRound;
    const VecF32 s0 = sums[i][0] + bias0, s1 = sums[i][1] + bias1;
    const VecI32 over0 = s0 >= splat(lowest), over1 = s1 >= splat(lowest);
    uint32_t mask = (mask_of(over0) | mask_of(over1) << kF32Lanes) & w.valid[p];
    if (mask == 0) continue;
    float scores[kColumns];
    store_f32(s0, scores);
    store_f32(s1, scores + kF32Lanes);
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

void screen_f32(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  using Tile = void (*)(const ScreenRows&, const ScreenPanels&, int32_t, const char*, int64_t);
  static const Tile tiles[kTileRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  for (int64_t p = begin; p < end; ++p) {
    if (w.valid[p] == 0) continue;
    for (int32_t g = 0; g < rows.groups; ++g) {
      const int32_t first = rows.group_row[g], n = rows.group_row[g + 1] - first;
      tiles[n - 1](rows, w, first, rows.packed + rows.group_offset[g], p);
    }
  }
}

}  // namespace

const TopkKernels topk = make_kernels(kColumns, kTileRows, kPackRows, kSurvivors, screen_f32);

}  // namespace FINESCOPE_ISA
}  // namespace finescope
