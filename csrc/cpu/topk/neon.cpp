#include "cpu/topk/rows.inl"
#include "cpu/topk/tile_neon.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

struct F32 {
  using Acc = float32x4_t;
  static constexpr bool kInteger = false;
  static inline uint32x4_t columns(uint32x4_t w) { return w; }
  template <int lane>
  static inline Acc mac(Acc acc, uint32x4_t w, uint32x4_t x) {
    return vfmaq_laneq_f32(acc, vreinterpretq_f32_u32(w), vreinterpretq_f32_u32(x), lane);
  }
  static inline float32x4_t score(Acc sum, float, float32x4_t bias) { return vaddq_f32(sum, bias); }
  static inline uint32x4_t reach(Acc, int32x4_t) { return vdupq_n_u32(0); }
};

// As with AVX2; not measured on a machine of this kind.
constexpr int kPackRows = 96;
constexpr float kSurvivors = 0.015f;

}  // namespace

const TopkKernels topk = make_kernels(kColumns, kTileRows, kPackRows, kSurvivors, screen<F32>);

}  // namespace FINESCOPE_ISA
}  // namespace finescope
