#include "cpu/topk/tile512.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Four products of an unsigned and a signed byte are added to each lane. w is the unsigned side (its elements
// are stored with 128 added), x the signed one; starting at -128 * sum(x) takes the 128s out again.
struct Int8 {
  using Acc = __m512i;
  static constexpr bool kInteger = true;
  static inline Acc start(int32_t s) { return _mm512_set1_epi32(s); }
  static inline Acc mac(Acc acc, __m512i w, __m512i x) { return _mm512_dpbusd_epi32(acc, w, x); }
  static inline __m512 to_f32(Acc acc) { return _mm512_cvtepi32_ps(acc); }
};

// Two products of 16-bit numbers are added to each lane. Rows are as whole_avx2.cpp makes them: no sum leaves 32
// bits.
struct Int16 {
  using Acc = __m512i;
  static constexpr bool kInteger = true;
  static inline Acc start(int32_t) { return _mm512_set1_epi32(0); }
  static inline Acc mac(Acc acc, __m512i w, __m512i x) { return _mm512_dpwssd_epi32(acc, w, x); }
  static inline __m512 to_f32(Acc acc) { return _mm512_cvtepi32_ps(acc); }
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
