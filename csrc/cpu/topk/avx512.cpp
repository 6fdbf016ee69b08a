#include "cpu/topk/rows.inl"
#include "cpu/topk/tile512.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

struct F32 {
  using Acc = __m512;
  static constexpr bool kInteger = false;
  static inline Acc start(int32_t) { return _mm512_setzero_ps(); }
  static inline Acc mac(Acc acc, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), acc);
  }
  static inline __m512 to_f32(Acc acc) { return acc; }
};

// Where float32 is twice as fast as with AVX2 and packing hardly faster, but the int8 screen eight times.
constexpr int kPackRows = 48;
constexpr float kSurvivors = 0.025f;

void screen_f32(const ScreenRows& rows, const ScreenPanels& w, int64_t begin, int64_t end) {
  screen<F32>(rows, w, begin, end);
}

}  // namespace

const TopkKernels topk = make_kernels(kColumns, kMaxTileRows, kPackRows, kSurvivors, screen_f32);

}  // namespace FINESCOPE_ISA
}  // namespace finescope
