// Screens in matrix registers ("tiles"): 16 rows of 16 units each, so one instruction multiplies 16 rows of x with 16
// columns of a panel, 16 units deep, in 16 cycles: eight times what vpdpbusd does.
//
// Four of the eight hold sums of 32 rows by a panel's 32 columns; two hold rows, two hold columns. A panel is read as it
// is: 16 of its units are a tile's rows, the columns beside one another.
#include "cpu/topk/candidates512.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

constexpr int kTileRows = 16, kRun = 16;  // rows of a tile, and units in each
constexpr int kRunBytes = kRun * 4, kStepBytes = kRun * kColumns * 4;

// GCC's intrinsics for tiles don't say what memory they read: this has it written before.
inline void written(const void* memory) {
  __asm__ volatile("" : : "r"(memory) : "memory");
}

// All tiles whole.
inline void configure() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = kRunBytes, config.rows[t] = kTileRows;
  written(&config);
  _tile_loadconfig(&config);
}

// x is the signed side, w the unsigned one, with 128 added, which `start` takes out again.
struct Int8 {
  using Acc = __m512i;
  static constexpr bool kInteger = true;
  static inline __m512 to_f32(Acc acc) { return _mm512_cvtepi32_ps(acc); }
};

struct Bf16 {
  using Acc = __m512;
  static constexpr bool kInteger = false;
  static inline __m512 to_f32(Acc acc) { return acc; }
};

#define FINESCOPE_TILES(product)         \
  product(0, 4, 6);                      \
  product(1, 4, 7);                      \
  if constexpr (kTall) product(2, 5, 6); \
  if constexpr (kTall) product(3, 5, 7)

// One run of units further: kTall: more than 16 rows of x.
template <class Kind, bool kTall>
inline __attribute__((always_inline)) void step(const char* x, const char* panel) {
  _tile_loadd(4, x, kRunBytes);
  _tile_loadd(6, panel, kColumns * 4);
  _tile_loadd(7, panel + 64, kColumns * 4);
  if constexpr (kTall) _tile_loadd(5, x + kTileRows * kRunBytes, kRunBytes);
  if constexpr (Kind::kInteger) {
    FINESCOPE_TILES(_tile_dpbsud);
  } else {
    FINESCOPE_TILES(_tile_dpbf16ps);
  }
}

// What is read next, and how much of it is asked for with each run: nothing but the tiles' own loads asks for panels
// otherwise, and these wait.
struct Next {
  const char* at;
  const char* end;
  int64_t bytes;

  void fetch() {
    const char* until = at + bytes < end ? at + bytes : end;
    for (; at < until; at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// sums = the products of a group of rows with the columns of a panel, whose last units are in `tail`.
template <class Kind, bool kTall>
void multiply(const char* x, int64_t rows, const char* panel, const char* tail, int64_t units, Next& next,
              typename Kind::Acc (*sums)[2]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (; units >= kRun; units -= kRun) {
    next.fetch();
    step<Kind, kTall>(x, panel);
    x += rows * kRunBytes;
    panel += kStepBytes;
  }
  if (units > 0) step<Kind, kTall>(x, tail);
  _tile_stored(0, &sums[0][0], 128);
  _tile_stored(1, &sums[0][1], 128);
  if constexpr (kTall) {
    _tile_stored(2, &sums[kTileRows][0], 128);
    _tile_stored(3, &sums[kTileRows][1], 128);
  }
}

template <class Kind, bool kBias>
void multiply_panels(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  alignas(64) typename Kind::Acc sums[2 * kTileRows][2];
  alignas(64) char tail[kStepBytes] = {};
  const int64_t whole = w.units / kRun * kRun;
  for (int64_t p = begin; p < end; ++p) {
    if (w.valid[p] == 0) continue;
    const char* panel = w.packed + p * w.panel_bytes;
    __builtin_memcpy(tail, panel + whole * kColumns * 4, (w.units - whole) * kColumns * 4);
    written(tail);
    const char* after = panel + w.panel_bytes;
    Next next{after, p + 1 < end ? after + w.panel_bytes : after, (kStepBytes / rows.groups + 63) / 64 * 64};
    for (int32_t g = 0; g < rows.groups; ++g) {
      const int32_t first = rows.group_row[g], n = rows.group_row[g + 1] - first;
      const char* x = rows.packed + rows.group_offset[g];
      const auto multiplied = n > kTileRows ? multiply<Kind, true> : multiply<Kind, false>;
      multiplied(x, n, panel, tail, w.units, next, sums);
      if constexpr (Kind::kInteger) {
        for (int i = 0; i < n; ++i) {
          const __m512i start = _mm512_set1_epi32(rows.start[first + i]);
          sums[i][0] = _mm512_add_epi32(sums[i][0], start);
          sums[i][1] = _mm512_add_epi32(sums[i][1], start);
        }
      }
      keep_above<Kind, kTileRows, kBias>(rows, w, first, n < kTileRows ? n : kTileRows, p, sums);
      if (n > kTileRows)
        keep_above<Kind, kTileRows, kBias>(rows, w, first + kTileRows, n - kTileRows, p, sums + kTileRows);
    }
  }
}

template <class Kind>
void screen_tiles(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  configure();
  w.bias != nullptr ? multiply_panels<Kind, true>(rows, w, begin, end)
                    : multiply_panels<Kind, false>(rows, w, begin, end);
  _tile_release();
}

}  // namespace

void add_screens(TopkKernels* kernels) {
  kernels->screen[static_cast<int>(ScreenKind::int8)] = screen_tiles<Int8>;
  kernels->screen[static_cast<int>(ScreenKind::bf16)] = screen_tiles<Bf16>;
  // These processors have a second-level cache of 2 MiB.
  for (ScreenKind kind : {ScreenKind::int8, ScreenKind::bf16})
    kernels->rows[static_cast<int>(kind)] = {2 * kTileRows, kRun, int64_t{1} << 20};
  kernels->wide = ScreenKind::bf16;
  // Measured with D between 384 and 4096: bytes pay up to D = 768.
  kernels->most_survivors = 0.006f;
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
