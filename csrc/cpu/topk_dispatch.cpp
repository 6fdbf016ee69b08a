#include "cpu/topk_kernels.h"

namespace finescope {
namespace {

// The levels above avx512 add a screen each and share the rest.
TopkKernels with_int8(TopkKernels kernels) {
#ifdef FINESCOPE_HAVE_AVX512_VNNI
  kernels.screen[static_cast<int>(ScreenKind::int8)] = avx512_vnni::topk_screen_int8;
#endif
  return kernels;
}

TopkKernels with_bf16(TopkKernels kernels) {
#ifdef FINESCOPE_HAVE_AVX512_BF16
  kernels.screen[static_cast<int>(ScreenKind::bf16)] = avx512_bf16::topk_screen_bf16;
#endif
  return kernels;
}

}  // namespace

const TopkKernels& topk_kernels() {
#ifdef FINESCOPE_HAVE_AVX512
  static const TopkKernels vnni = with_int8(avx512::topk), bf16 = with_bf16(vnni);
#endif
  static const Variants<TopkKernels> variants = {{
      &scalar::topk,
#ifdef FINESCOPE_HAVE_AVX2
      &avx2::topk,
#else
      nullptr,
#endif
#ifdef FINESCOPE_HAVE_AVX512
      &avx512::topk,
      &vnni,
      &bf16,
#endif
  }};
  return variants.active();
}

}  // namespace finescope
