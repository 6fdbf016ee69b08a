// The intrinsics of AVX-512, AVX-VNNI and AMX that csrc/cpu uses, lane by lane, for processors without them. Given to the
// compiler with -include; the files of those levels are then compiled for AVX2 but from the lines for
// AVX-512.
//
// The names are found before the compiler's own because they lie in the namespace of the kernels. An
// intrinsic that is missing here does not compile ("target specific option mismatch"). What Intel leaves to a
// mask is left alone: a lane that is masked off is not read, so AddressSanitizer sees those that are.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
// These are macros, some of them without optimisation only, and no declaration hides a macro.
#undef _mm256_dpbusd_avx_epi32
#undef _mm256_dpwssd_avx_epi32
#undef _mm512_cmp_ps_mask
#undef _mm512_extractf64x4_pd
#undef _mm512_mask_i32gather_ps
#undef _mm512_maskz_cvtps_ph
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi32
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero

// What touches memory of the kernels is checked where they are; the rest would only take its time.
#define FINESCOPE_MEMORY static inline __attribute__((unused))
#if defined(__SANITIZE_ADDRESS__)
#define FINESCOPE_LANEWISE static __attribute__((noinline, unused, no_sanitize("address", "undefined")))
#else
#define FINESCOPE_LANEWISE static inline __attribute__((always_inline, unused))
#endif

namespace finescope {
namespace lanes {

typedef float F32 __attribute__((vector_size(64), may_alias));
typedef double F64 __attribute__((vector_size(64), may_alias));
typedef int32_t I32 __attribute__((vector_size(64), may_alias));
typedef int64_t I64 __attribute__((vector_size(64), may_alias));
typedef uint8_t U8 __attribute__((vector_size(64), may_alias));
typedef int8_t S8 __attribute__((vector_size(64), may_alias));
typedef uint16_t U16 __attribute__((vector_size(64), may_alias));
typedef int16_t S16 __attribute__((vector_size(64), may_alias));
typedef uint16_t U16x16 __attribute__((vector_size(32), may_alias));

template <class V>
FINESCOPE_MEMORY V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
// Aligned accesses fault where the address is not.
template <class V>
FINESCOPE_MEMORY V load_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) __builtin_trap();
  return load<V>(p);
}
template <class V>
FINESCOPE_MEMORY void store_aligned(void* p, V v) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) __builtin_trap();
  std::memcpy(p, &v, sizeof(v));
}
template <class V, class T>
FINESCOPE_MEMORY V load_masked(uint32_t mask, const T* p) {
  V v = {};
  for (int i = 0; i < 16; ++i) {
    T one;
    if (mask >> i & 1u) std::memcpy(&one, p + i, sizeof(one)), v[i] = one;
  }
  return v;
}
template <class V>
FINESCOPE_LANEWISE V compressed(uint32_t mask, V from) {
  V v = {};
  for (int i = 0, n = 0; i < 16; ++i) {
    if (mask >> i & 1u) v[n++] = from[i];
  }
  return v;
}
template <class V>
FINESCOPE_LANEWISE __mmask16 signs(V truths) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= (truths[i] != 0 ? 1u : 0u) << i;
  return static_cast<__mmask16>(mask);
}
// A bfloat16 or a sum as VDPBF16PS sees and leaves it, whatever MXCSR says: what is subnormal is zero.
FINESCOPE_LANEWISE float flushed(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}
FINESCOPE_LANEWISE float widened(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, sizeof(x));
  return flushed(x);
}

}  // namespace lanes

// --- memory

FINESCOPE_MEMORY __m512 _mm512_loadu_ps(const void* p) {
  return lanes::load<__m512>(p);
}
FINESCOPE_MEMORY __m512i _mm512_loadu_si512(const void* p) {
  return lanes::load<__m512i>(p);
}
FINESCOPE_MEMORY __m512i _mm512_load_si512(const void* p) {
  return lanes::load_aligned<__m512i>(p);
}
FINESCOPE_MEMORY void _mm512_storeu_ps(void* p, __m512 v) {
  std::memcpy(p, &v, sizeof(v));
}
FINESCOPE_MEMORY void _mm512_storeu_si512(void* p, __m512i v) {
  std::memcpy(p, &v, sizeof(v));
}
FINESCOPE_MEMORY void _mm512_store_ps(void* p, __m512 v) {
  lanes::store_aligned(p, v);
}
FINESCOPE_MEMORY void _mm512_store_si512(void* p, __m512i v) {
  lanes::store_aligned(p, v);
}
FINESCOPE_MEMORY __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  return (__m512)lanes::load_masked<lanes::F32>(mask, static_cast<const float*>(p));
}
FINESCOPE_MEMORY __m512d _mm512_maskz_loadu_pd(__mmask8 mask, const void* p) {
  return (__m512d)lanes::load_masked<lanes::F64>(mask, static_cast<const double*>(p));
}
FINESCOPE_MEMORY __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* p) {
  return (__m512i)lanes::load_masked<lanes::I32>(mask, static_cast<const int32_t*>(p));
}
FINESCOPE_MEMORY __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return (__m256i)lanes::load_masked<lanes::U16x16>(mask, static_cast<const uint16_t*>(p));
}
FINESCOPE_MEMORY __m512 _mm512_mask_i32gather_ps(__m512 src, __mmask16 mask, __m512i at, const void* p,
                                                 int scale) {
  lanes::F32 v = (lanes::F32)src;
  for (int i = 0; i < 16; ++i) {
    float one;
    if (mask >> i & 1u) {
      std::memcpy(&one, static_cast<const char*>(p) + int64_t{((lanes::I32)at)[i]} * scale, sizeof(one));
      v[i] = one;
    }
  }
  return (__m512)v;
}

// --- one value in every lane, and the same bits as another type

FINESCOPE_LANEWISE __m512 _mm512_setzero_ps() {
  return __m512{};
}
FINESCOPE_LANEWISE __m512 _mm512_set1_ps(float x) {
  lanes::F32 v;
  for (int i = 0; i < 16; ++i) v[i] = x;
  return (__m512)v;
}
FINESCOPE_LANEWISE __m512i _mm512_set1_epi32(int x) {
  lanes::I32 v;
  for (int i = 0; i < 16; ++i) v[i] = x;
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i,
                                             int j, int k, int l, int m, int n, int o, int p) {
  return (__m512i)lanes::I32{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
FINESCOPE_LANEWISE __m512 _mm512_castsi512_ps(__m512i v) {
  return (__m512)v;
}
FINESCOPE_LANEWISE __m256d _mm512_castpd512_pd256(__m512d v) {
  return lanes::load<__m256d>(&v);
}
FINESCOPE_LANEWISE __m256d _mm512_extractf64x4_pd(__m512d v, int half) {
  return lanes::load<__m256d>(reinterpret_cast<const char*>(&v) + 32 * half);
}

// --- arithmetic, each operation rounded once

FINESCOPE_LANEWISE __m512 _mm512_add_ps(__m512 a, __m512 b) {
  return a + b;
}
FINESCOPE_LANEWISE __m512 _mm512_sub_ps(__m512 a, __m512 b) {
  return a - b;
}
FINESCOPE_LANEWISE __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return a * b;
}
FINESCOPE_LANEWISE __m512 _mm512_abs_ps(__m512 a) {
  return (__m512)((lanes::I32)a & INT32_MAX);
}
// The second operand where the comparison is false: so for NaN, and for zeros of either sign.
FINESCOPE_LANEWISE __m512 _mm512_min_ps(__m512 a, __m512 b) {
  return a < b ? a : b;
}
FINESCOPE_LANEWISE __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return a > b ? a : b;
}
FINESCOPE_LANEWISE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  __m512 v;
  for (int i = 0; i < 16; ++i) v[i] = std::fma(a[i], b[i], c[i]);
  return v;
}
FINESCOPE_LANEWISE __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(-a, b, c);
}
FINESCOPE_LANEWISE __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
  __m512d v;
  for (int i = 0; i < 8; ++i) v[i] = std::fma(a[i], b[i], c[i]);
  return v;
}
FINESCOPE_LANEWISE __m512 _mm512_maskz_sqrt_ps(__mmask16 mask, __m512 a) {
  __m512 v = {};
  for (int i = 0; i < 16; ++i) v[i] = mask >> i & 1u ? __builtin_sqrtf(a[i]) : 0.0f;
  return v;
}
FINESCOPE_LANEWISE __m512d _mm512_maskz_sqrt_pd(__mmask8 mask, __m512d a) {
  __m512d v = {};
  for (int i = 0; i < 8; ++i) v[i] = mask >> i & 1u ? __builtin_sqrt(a[i]) : 0.0;
  return v;
}
// By halves: 8, 4, 2, 1.
FINESCOPE_LANEWISE float _mm512_reduce_add_ps(__m512 a) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}
FINESCOPE_LANEWISE __m512i _mm512_add_epi16(__m512i a, __m512i b) {
  return (__m512i)((lanes::U16)a + (lanes::U16)b);
}
FINESCOPE_LANEWISE __m512i _mm512_mulhrs_epi16(__m512i a, __m512i b) {
  lanes::S16 v;
  for (int i = 0; i < 32; ++i) {
    v[i] = static_cast<int16_t>((int32_t{((lanes::S16)a)[i]} * ((lanes::S16)b)[i] + (1 << 14)) >> 15);
  }
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  typedef uint32_t U32 __attribute__((vector_size(64)));
  return (__m512i)((U32)a + (U32)b);
}
FINESCOPE_LANEWISE __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return a & b;
}
FINESCOPE_LANEWISE __m512i _mm512_slli_epi32(__m512i a, unsigned count) {
  typedef uint32_t U32 __attribute__((vector_size(64)));
  return count > 31 ? __m512i{} : (__m512i)((U32)a << count);
}
// Products of unsigned and signed bytes, four to a sum that wraps.
FINESCOPE_LANEWISE __m512i _mm512_dpbusd_epi32(__m512i acc, __m512i a, __m512i b) {
  lanes::I32 v = (lanes::I32)acc;
  const lanes::U8 u = (lanes::U8)a;
  const lanes::S8 s = (lanes::S8)b;
  for (int i = 0; i < 16; ++i) {
    int32_t sum = 0;
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum += int32_t{u[j]} * s[j];
    v[i] = static_cast<int32_t>(static_cast<uint32_t>(v[i]) + static_cast<uint32_t>(sum));
  }
  return (__m512i)v;
}
// Products of signed 16-bit numbers, two to a sum that wraps.
FINESCOPE_LANEWISE __m512i _mm512_dpwssd_epi32(__m512i acc, __m512i a, __m512i b) {
  lanes::I32 v = (lanes::I32)acc;
  const lanes::U16 x = (lanes::U16)a, y = (lanes::U16)b;
  for (int i = 0; i < 16; ++i) {
    uint32_t sum = static_cast<uint32_t>(v[i]);
    for (int j = 2 * i; j < 2 * i + 2; ++j)
      sum += static_cast<uint32_t>(int32_t{static_cast<int16_t>(x[j])} * static_cast<int16_t>(y[j]));
    v[i] = static_cast<int32_t>(sum);
  }
  return (__m512i)v;
}
// The same of 256 bits.
template <class Wide>
FINESCOPE_LANEWISE __m256i narrow(Wide wide, __m256i acc, __m256i a, __m256i b) {
  __m512i v[3] = {};
  std::memcpy(v, &acc, sizeof(acc));
  std::memcpy(v + 1, &a, sizeof(a));
  std::memcpy(v + 2, &b, sizeof(b));
  v[0] = wide(v[0], v[1], v[2]);
  std::memcpy(&acc, v, sizeof(acc));
  return acc;
}
FINESCOPE_LANEWISE __m256i _mm256_dpbusd_avx_epi32(__m256i acc, __m256i a, __m256i b) {
  return narrow(_mm512_dpbusd_epi32, acc, a, b);
}
FINESCOPE_LANEWISE __m256i _mm256_dpwssd_avx_epi32(__m256i acc, __m256i a, __m256i b) {
  return narrow(_mm512_dpwssd_epi32, acc, a, b);
}
// The product of two bfloat16 has at most 16 bits; the one of the odd elements is added first.
FINESCOPE_LANEWISE __m512 _mm512_dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
  const lanes::U16 x = lanes::load<lanes::U16>(&a), y = lanes::load<lanes::U16>(&b);
  for (int i = 0; i < 16; ++i) {
    float sum = lanes::flushed(acc[i]);
    for (int j = 2 * i + 1; j >= 2 * i; --j) {
      sum = lanes::flushed(std::fma(lanes::widened(x[j]), lanes::widened(y[j]), sum));
    }
    acc[i] = sum;
  }
  return acc;
}

// --- matrix registers: 8 of 16 rows of 64 bytes, which are there between loadconfig and release, and used whole

namespace lanes {
typedef uint8_t Matrix[16][64];
static thread_local Matrix matrix[8] __attribute__((unused));
static thread_local bool configured __attribute__((unused));

FINESCOPE_MEMORY Matrix& tile(int t) {
  if (!configured) __builtin_trap();
  return matrix[t];
}
}  // namespace lanes

FINESCOPE_MEMORY void _tile_loadconfig(const void* config) {
  const auto bytes = lanes::load<lanes::U8>(config);
  bool whole = bytes[0] == 1 && bytes[1] == 0;
  for (int t = 0; t < 8; ++t) whole = whole && bytes[16 + 2 * t] == 64 && bytes[48 + t] == 16;
  if (!whole) __builtin_trap();
  lanes::configured = true;
}
FINESCOPE_MEMORY void _tile_release() {
  lanes::configured = false;
}
FINESCOPE_MEMORY void _tile_zero(int t) {
  std::memset(lanes::tile(t), 0, sizeof(lanes::Matrix));
}
FINESCOPE_MEMORY void _tile_loadd(int t, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i)
    std::memcpy(lanes::tile(t)[i], static_cast<const char*>(from) + i * stride, 64);
}
FINESCOPE_MEMORY void _tile_stored(int t, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * stride, lanes::tile(t)[i], 64);
}
// The first factor is the signed one.
FINESCOPE_LANEWISE void _tile_dpbsud(int sums, int a, int b) {
  for (int row = 0; row < 16; ++row) {
    auto acc = lanes::load<lanes::I32>(lanes::tile(sums)[row]);
    for (int k = 0; k < 64; ++k) {
      const int32_t x = static_cast<int8_t>(lanes::tile(a)[row][k]);
      for (int i = 0; i < 16; ++i) acc[i] += x * lanes::tile(b)[k / 4][4 * i + k % 4];
    }
    std::memcpy(lanes::tile(sums)[row], &acc, 64);
  }
}
// Even and odd elements are added up apart.
FINESCOPE_LANEWISE void _tile_dpbf16ps(int sums, int a, int b) {
  for (int row = 0; row < 16; ++row) {
    const auto x = lanes::load<lanes::U16>(lanes::tile(a)[row]);
    auto acc = lanes::load<lanes::F32>(lanes::tile(sums)[row]);
    lanes::F32 apart[2] = {};
    for (int k = 0; k < 32; ++k) {
      const auto y = lanes::load<lanes::U16>(lanes::tile(b)[k / 2]);
      for (int i = 0; i < 16; ++i) {
        const float product =
            std::fma(lanes::widened(x[k]), lanes::widened(y[2 * i + k % 2]), apart[k % 2][i]);
        apart[k % 2][i] = lanes::flushed(product);
      }
    }
    for (int i = 0; i < 16; ++i) {
      acc[i] = lanes::flushed(lanes::flushed(acc[i]) + lanes::flushed(apart[0][i] + apart[1][i]));
    }
    std::memcpy(lanes::tile(sums)[row], &acc, 64);
  }
}

// --- conversions

FINESCOPE_LANEWISE __m512i _mm512_cvtepu16_epi32(__m256i a) {
  lanes::I32 v;
  for (int i = 0; i < 16; ++i) v[i] = ((lanes::U16x16)a)[i];
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512i _mm512_maskz_cvtepu16_epi32(__mmask16 mask, __m256i a) {
  lanes::I32 v;
  for (int i = 0; i < 16; ++i) v[i] = mask >> i & 1u ? ((lanes::U16x16)a)[i] : 0;
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512 _mm512_cvtepi32_ps(__m512i a) {
  return (__m512) __builtin_convertvector((lanes::I32)a, lanes::F32);
}
// What has no place in 32 bits, NaN too, becomes the lowest integer.
FINESCOPE_LANEWISE __m512i _mm512_cvttps_epi32(__m512 a) {
  lanes::I32 v;
  for (int i = 0; i < 16; ++i) {
    v[i] = a[i] >= -0x1p31f && a[i] < 0x1p31f ? static_cast<int32_t>(a[i]) : INT32_MIN;
  }
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512d _mm512_cvtps_pd(__m256 a) {
  __m512d v;
  for (int i = 0; i < 8; ++i) v[i] = a[i];
  return v;
}
FINESCOPE_LANEWISE __m512 _mm512_maskz_cvtph_ps(__mmask16 mask, __m256i a) {
  __m512 v;
  for (int i = 0; i < 16; ++i) v[i] = mask >> i & 1u ? _cvtsh_ss(((lanes::U16x16)a)[i]) : 0.0f;
  return v;
}
// Only to nearest, ties to even, is asked for.
FINESCOPE_LANEWISE __m256i _mm512_maskz_cvtps_ph(__mmask16 mask, __m512 a, int rounding) {
  if (rounding != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) __builtin_trap();
  lanes::U16x16 v;
  for (int i = 0; i < 16; ++i) v[i] = mask >> i & 1u ? _cvtss_sh(a[i], _MM_FROUND_TO_NEAREST_INT) : 0;
  return (__m256i)v;
}

// --- masks

FINESCOPE_LANEWISE __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  if (predicate != _CMP_GE_OQ) __builtin_trap();
  return lanes::signs(a >= b);
}
FINESCOPE_LANEWISE __mmask16 _mm512_cmpge_epi32_mask(__m512i a, __m512i b) {
  return lanes::signs((lanes::I32)a >= (lanes::I32)b);
}
FINESCOPE_LANEWISE __mmask16 _mm512_test_epi32_mask(__m512i a, __m512i b) {
  return lanes::signs((lanes::I32)(a & b));
}
// The low 16 bits of the second operand, above them those of the first.
FINESCOPE_LANEWISE __mmask32 _mm512_kunpackw(__mmask32 a, __mmask32 b) {
  return (b & 0xffffu) | a << 16;
}
FINESCOPE_LANEWISE __m512 _mm512_maskz_compress_ps(__mmask16 mask, __m512 a) {
  return (__m512)lanes::compressed(mask, (lanes::F32)a);
}
FINESCOPE_LANEWISE __m512i _mm512_maskz_compress_epi32(__mmask16 mask, __m512i a) {
  return (__m512i)lanes::compressed(mask, (lanes::I32)a);
}

// --- lanes to other places, within each 128 bits or whole groups of them

FINESCOPE_LANEWISE __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  lanes::I32 v;
  for (int i = 0; i < 16; ++i) v[i] = ((lanes::I32)(i % 2 ? b : a))[i / 4 * 4 + i % 4 / 2];
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  lanes::I32 v;
  for (int i = 0; i < 16; ++i) v[i] = ((lanes::I32)(i % 2 ? b : a))[i / 4 * 4 + 2 + i % 4 / 2];
  return (__m512i)v;
}
FINESCOPE_LANEWISE __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  for (int i = 1; i < 8; i += 2) a[i] = b[i - 1];
  return a;
}
FINESCOPE_LANEWISE __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  for (int i = 0; i < 8; i += 2) a[i] = a[i + 1], a[i + 1] = b[i + 1];
  return a;
}
FINESCOPE_LANEWISE __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int order) {
  __m512i v;
  for (int group = 0; group < 4; ++group) {
    const int from = order >> (2 * group) & 3;
    for (int i = 0; i < 2; ++i) v[2 * group + i] = (group < 2 ? a : b)[2 * from + i];
  }
  return v;
}

}  // namespace finescope
