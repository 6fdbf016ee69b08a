#include "cpu/topk/tile256.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// The instructions of AVX-512 VNNI in 256 bits. vpdpbusd adds four products of an unsigned and a signed byte to 32
// bits, without saturation on the way: as there, w is the unsigned side, stored with 128 added, and sums start from
// -128 times the sum of x.
struct Int8 {
  static constexpr int kChunk = 0;
  static inline void add(__m256i& acc, __m256i w, __m256i x) { acc = _mm256_dpbusd_avx_epi32(acc, w, x); }
};

// vpdpwssd adds two products of 16-bit numbers. Rows are as whole_avx2.cpp makes them: no sum leaves 32 bits.
struct Int16 {
  static constexpr int kChunk = 0;
  static inline void add(__m256i& acc, __m256i w, __m256i x) { acc = _mm256_dpwssd_avx_epi32(acc, w, x); }
};

}  // namespace

void topk_screen_int8(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Int8>(rows, w, begin, end);
}

void topk_screen_int16(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Int16>(rows, w, begin, end);
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
