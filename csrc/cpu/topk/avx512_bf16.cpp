#include "cpu/topk/tile512.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Two products of bfloat16 pairs are added to each lane.
struct Bf16 {
  using Acc = __m512;
  static constexpr bool kInteger = false;
  static inline Acc start(int32_t) { return _mm512_setzero_ps(); }
  static inline Acc mac(Acc acc, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static inline __m512 to_f32(Acc acc) { return acc; }
};

}  // namespace

void topk_screen_bf16(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Bf16>(rows, w, begin, end);
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
