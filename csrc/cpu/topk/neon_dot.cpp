#include "cpu/topk/tile_neon.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Four products of signed bytes are added to each lane. The elements of w are stored with 128 added, which is
// taken off them here.
struct Int8 {
  using Acc = int32x4_t;
  static constexpr bool kInteger = true;
  static inline uint32x4_t columns(uint32x4_t w) { return veorq_u32(w, vdupq_n_u32(0x80808080u)); }
  template <int lane>
  static inline Acc mac(Acc acc, uint32x4_t w, uint32x4_t x) {
    return vdotq_laneq_s32(acc, vreinterpretq_s8_u32(w), vreinterpretq_s8_u32(x), lane);
  }
  static inline float32x4_t score(Acc sum, float factor, float32x4_t bias) {
    return vfmaq_n_f32(bias, vcvtq_f32_s32(sum), factor);
  }
  static inline uint32x4_t reach(Acc sum, int32x4_t least) { return vcgeq_s32(sum, least); }
};

}  // namespace

void topk_screen_int8(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<Int8>(rows, w, begin, end);
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
