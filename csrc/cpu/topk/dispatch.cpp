#include "cpu/topk/kernels.h"

namespace finescope {
namespace {

// The levels above avx512, and above neon, add a screen each and share the rest.
[[maybe_unused]] TopkKernels with_dot_products(TopkKernels kernels) {
#ifdef FINESCOPE_HAVE_AVX512_VNNI
  kernels.screen[static_cast<int>(ScreenKind::int8)] = avx512_vnni::topk_screen_int8;
  avx2::add_words(&kernels, avx512_vnni::topk_screen_int16);
#elif defined(FINESCOPE_HAVE_NEON_DOT)
  kernels.screen[static_cast<int>(ScreenKind::int8)] = neon_dot::topk_screen_int8;
#endif
  return kernels;
}

#ifdef FINESCOPE_HAVE_AVX2
TopkKernels with_whole_numbers(TopkKernels kernels) {
  avx2::add_whole_screens(&kernels);
  return kernels;
}

// The bytes of AVX-VNNI in the place of those of AVX2: elements up to 127, as everywhere else.
[[maybe_unused]] TopkKernels with_avx_vnni(TopkKernels kernels) {
#ifdef FINESCOPE_HAVE_AVX_VNNI
  const int bytes = static_cast<int>(ScreenKind::int8);
  kernels.screen[bytes] = avx_vnni::topk_screen_int8;
  kernels.whole[bytes] = avx2::topk.whole[bytes];
  avx2::add_words(&kernels, avx_vnni::topk_screen_int16);
#endif
  return kernels;
}
#endif

[[maybe_unused]] TopkKernels with_bf16(TopkKernels kernels) {
#ifdef FINESCOPE_HAVE_AVX512_BF16
  kernels.screen[static_cast<int>(ScreenKind::bf16)] = avx512_bf16::topk_screen_bf16;
#endif
  return kernels;
}

[[maybe_unused]] TopkKernels with_amx(TopkKernels kernels) {
#ifdef FINESCOPE_HAVE_AMX
  amx::add_screens(&kernels);
#endif
  return kernels;
}

}  // namespace

const TopkKernels& topk_kernels() {
#ifdef FINESCOPE_HAVE_AVX2
  static const TopkKernels avx2 = with_whole_numbers(avx2::topk), avx_vnni = with_avx_vnni(avx2);
#endif
#ifdef FINESCOPE_HAVE_AVX512
  static const TopkKernels vnni = with_dot_products(avx512::topk), bf16 = with_bf16(vnni),
                           amx = with_amx(bf16);
#elif defined(FINESCOPE_HAVE_NEON)
  static const TopkKernels dot = with_dot_products(neon::topk);
#endif
  static const Variants<TopkKernels> variants = {{
      &scalar::topk,
      FINESCOPE_IF_AVX2(&avx2),
      FINESCOPE_IF_AVX2(&avx_vnni),
      FINESCOPE_IF_AVX512(&avx512::topk),
      FINESCOPE_IF_AVX512(&vnni),
      FINESCOPE_IF_AVX512(&bf16),
      FINESCOPE_IF_AVX512(&amx),
      FINESCOPE_IF_NEON(&neon::topk),
      FINESCOPE_IF_NEON(&dot),
  }};
  return variants.active();
}

}  // namespace finescope
