#include "cpu/topk/tile256.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// The instructions of AVX-512 VNNI in 256 bits. vpdpbusd adds four products of an unsigned and a signed byte to 32
// bits, without saturation on the way: as there, w is the unsigned side, stored with 128 added, and sums start from
// -128 times the sum of x.
struct Int8 {
  static inline __m256i start(int32_t s) { return _mm256_set1_epi32(s); }
  static inline __m256i mac(__m256i acc, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
};

// vpdpwssd adds two products of 16-bit numbers. Rows are as whole_avx2.cpp makes them: no sum leaves 32 bits.
struct Int16 {
  static inline __m256i start(int32_t) { return _mm256_setzero_si256(); }
  static inline __m256i mac(__m256i acc, __m256i w, __m256i x) { return _mm256_dpwssd_avx_epi32(acc, w, x); }
};

// A function of its own, so that nothing else competes for registers in its loop: 12 accumulators, two registers of
// the panel and a broadcast are 15 of 16.
template <class Products, int MR>
__attribute__((noinline)) void multiply_tile(const char* x, const char* panel, int64_t units,
                                             const int32_t* start, __m256i (*sums)[2]) {
  __m256i acc[MR][2];
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i) acc[i][0] = acc[i][1] = Products::start(start[i]);
  for (const char* end = panel + 64 * units; panel != end; panel += 64) {
    const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
    const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32));
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      int32_t unit;
      __builtin_memcpy(&unit, x + 4 * i, 4);
      const __m256i xi = _mm256_set1_epi32(unit);
      acc[i][0] = Products::mac(acc[i][0], w0, xi);
      acc[i][1] = Products::mac(acc[i][1], w1, xi);
    }
    x += 4 * MR;
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i) {
    sums[i][0] = acc[i][0];
    sums[i][1] = acc[i][1];
  }
}

template <class Products>
struct Whole {
  template <int MR>
  static inline void multiply(const char* x, const char* panel, int64_t units, const int32_t* start,
                              __m256i (*sums)[2]) {
    multiply_tile<Products, MR>(x, panel, units, start, sums);
  }
};

}  // namespace

void topk_screen_int8(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Whole<Int8>>(rows, w, begin, end);
}

void topk_screen_int16(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Whole<Int16>>(rows, w, begin, end);
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
