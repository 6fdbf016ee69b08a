// One SIMD register of the instruction set a file is compiled for, in the compiler's vector language.
//
// Included only by the per-ISA sources (through a .inl), each of which sets FINESCOPE_ISA. Everything here is
// in that ISA's namespace: an inline function shared between files of different ISAs would be merged by the
// linker, and the wrong one might be kept.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics start from a deliberately undefined register and warn about it where they are
// inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__F16C__)
#include <immintrin.h>
#elif defined(FINESCOPE_NEON)
#include <arm_neon.h>
#endif

#include "kernels.h"

#if defined(__AVX512F__)
#define FINESCOPE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FINESCOPE_VECTOR_BYTES 32
#else
#define FINESCOPE_VECTOR_BYTES 16
#endif

#define FINESCOPE_INLINE inline __attribute__((always_inline))

namespace finescope {
namespace FINESCOPE_ISA {

// 16-bit floats as stored; distinct types, so that loads overload on them.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

constexpr int kF32Lanes = FINESCOPE_VECTOR_BYTES / 4;
constexpr int kF64Lanes = FINESCOPE_VECTOR_BYTES / 8;

typedef float VecF32 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES)));
typedef double VecF64 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES)));
typedef uint32_t VecU32 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES)));
typedef float HalfF32 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES / 2)));
typedef uint32_t HalfU32 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES / 2)));
typedef uint16_t QuarterU16 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES / 4)));
typedef uint16_t HalfU16 __attribute__((vector_size(FINESCOPE_VECTOR_BYTES / 2)));

template <class To, class From>
FINESCOPE_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// --- single elements

FINESCOPE_INLINE float to_f32(float x) {
  return x;
}
FINESCOPE_INLINE float to_f32(bf16 x) {
  return bits_as<float>(uint32_t{x.bits} << 16);
}
FINESCOPE_INLINE float to_f32(f16 x) {
  // Shift exponent and fraction into place and rescale by 2^112; subnormals come out right because the
  // multiply normalises them. Inf and NaN need their exponent set afterwards.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const float scaled = bits_as<float>(magnitude) * bits_as<float>(uint32_t{0x77800000});
  const uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return bits_as<float>(bits_as<uint32_t>(scaled) | special | (uint32_t{x.bits} & 0x8000u) << 16);
}

// Round to nearest, ties to even; every NaN becomes the canonical one, so that all ISAs store the same bytes.
FINESCOPE_INLINE void store_as(float x, float* p) {
  *p = x;
}
FINESCOPE_INLINE void store_as(float x, bf16* p) {
  const uint32_t u = bits_as<uint32_t>(x);
  p->bits = x != x ? uint16_t{0x7fc0} : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
FINESCOPE_INLINE void store_as(float x, f16* p) {
  const uint32_t u = bits_as<uint32_t>(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) {
    p->bits = 0x7e00;
    return;
  }
  if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    h = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal: drop 13 bits, rebias the exponent by 112
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // subnormal: adding 0.5 puts the unit of 2^-24 at the last place, and the addition rounds
    h = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  }
  p->bits = static_cast<uint16_t>(h | sign);
}

// --- vectors

template <class T, class V>
FINESCOPE_INLINE V load_raw(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

FINESCOPE_INLINE VecF32 load_f32(const float* p) {
  return load_raw<float, VecF32>(p);
}
FINESCOPE_INLINE VecF32 load_f32(const bf16* p) {
  // By intrinsic where there is one: GCC 12 takes the conversion of a vector of uint16 apart and together
  // again.
#if defined(__AVX512F__)
  return bits_as<VecF32>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_raw<bf16, __m256i>(p)), 16));
#elif defined(__AVX2__)
  return bits_as<VecF32>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_raw<bf16, __m128i>(p)), 16));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF32>(vshll_n_u16(load_raw<bf16, uint16x4_t>(p), 16));
#else
  return bits_as<VecF32>(__builtin_convertvector((load_raw<bf16, HalfU16>(p)), VecU32) << 16);
#endif
}
FINESCOPE_INLINE VecF32 load_f32(const f16* p) {
#if defined(__AVX512F__)
  return bits_as<VecF32>(_mm512_maskz_cvtph_ps(0xffff, load_raw<f16, __m256i>(p)));
#elif defined(__F16C__)
  return bits_as<VecF32>(_mm256_cvtph_ps(load_raw<f16, __m128i>(p)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF32>(vcvt_f32_f16(load_raw<f16, float16x4_t>(p)));
#else
  VecF32 v;
  for (int i = 0; i < kF32Lanes; ++i) v[i] = to_f32(p[i]);
  return v;
#endif
}

FINESCOPE_INLINE void store_f32(VecF32 v, float* p) {
  std::memcpy(p, &v, sizeof(v));
}
FINESCOPE_INLINE void store_f32(VecF32 v, bf16* p) {
  const VecU32 u = bits_as<VecU32>(v);
  const VecU32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU32 nan = bits_as<VecU32>(v != v);
  const HalfU16 h = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), HalfU16);
  std::memcpy(p, &h, sizeof(h));
}
FINESCOPE_INLINE void store_f32(VecF32 v, f16* p) {
#if defined(__F16C__) || defined(FINESCOPE_NEON)
  const VecU32 nan = bits_as<VecU32>(v != v);
  const VecU32 clean = (bits_as<VecU32>(v) & ~nan) | (nan & 0x7fc00000u);
#if defined(__AVX512F__)
  const __m256i h =
      _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(clean), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(FINESCOPE_NEON)
  const float16x4_t h = vcvt_f16_f32(bits_as<float32x4_t>(clean));
#else
  const __m128i h = _mm256_cvtps_ph(bits_as<__m256>(clean), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
  std::memcpy(p, &h, sizeof(h));
#else
  for (int i = 0; i < kF32Lanes; ++i) store_as(static_cast<float>(v[i]), p + i);
#endif
}

// How a stored type is computed with: its accumulator, and vectors of that.
template <class T>
struct Lanes {
  using Acc = float;
  using Vec = VecF32;
  static constexpr int n = kF32Lanes;
  static FINESCOPE_INLINE Vec load(const T* p) { return load_f32(p); }
  static FINESCOPE_INLINE void store(Vec v, T* p) { store_f32(v, p); }
  static FINESCOPE_INLINE Acc load1(const T* p) { return to_f32(*p); }
  static FINESCOPE_INLINE void store1(Acc v, T* p) { store_as(v, p); }
};
template <>
struct Lanes<double> {
  using Acc = double;
  using Vec = VecF64;
  static constexpr int n = kF64Lanes;
  static FINESCOPE_INLINE Vec load(const double* p) { return load_raw<double, VecF64>(p); }
  static FINESCOPE_INLINE void store(Vec v, double* p) { std::memcpy(p, &v, sizeof(v)); }
  static FINESCOPE_INLINE Acc load1(const double* p) { return *p; }
  static FINESCOPE_INLINE void store1(Acc v, double* p) { *p = v; }
};

// kF64Lanes elements as float64; exact for every stored type.
FINESCOPE_INLINE VecF64 load_f64(const double* p) {
  return load_raw<double, VecF64>(p);
}
FINESCOPE_INLINE VecF64 widen_f64(HalfF32 v) {
  // By intrinsic for the same reason as above.
#if defined(__AVX512F__)
  return bits_as<VecF64>(_mm512_cvtps_pd(bits_as<__m256>(v)));
#elif defined(__AVX__)
  return bits_as<VecF64>(_mm256_cvtps_pd(bits_as<__m128>(v)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF64>(vcvt_f64_f32(bits_as<float32x2_t>(v)));
#else
  return __builtin_convertvector(v, VecF64);
#endif
}
FINESCOPE_INLINE VecF64 load_f64(const float* p) {
  return widen_f64(load_raw<float, HalfF32>(p));
}
FINESCOPE_INLINE VecF64 load_f64(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i u = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_raw<bf16, __m128i>(p)), 16);
  return widen_f64(bits_as<HalfF32>(u));
#elif defined(FINESCOPE_NEON)
  // Two elements; the other two of the register are copies.
  const uint32x2_t pair = vdup_n_u32(load_raw<bf16, uint32_t>(p));
  const uint32x4_t u = vshll_n_u16(vreinterpret_u16_u32(pair), 16);
  return widen_f64(bits_as<HalfF32>(vget_low_u32(u)));
#else
  const HalfU32 u = __builtin_convertvector((load_raw<bf16, QuarterU16>(p)), HalfU32) << 16;
  return widen_f64(bits_as<HalfF32>(u));
#endif
}
FINESCOPE_INLINE VecF64 load_f64(const f16* p) {
  HalfF32 v;
#if defined(__AVX512F__)
  v = bits_as<HalfF32>(_mm256_cvtph_ps(load_raw<f16, __m128i>(p)));
#elif defined(__F16C__)
  v = bits_as<HalfF32>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(FINESCOPE_NEON)
  const uint32x2_t pair = vdup_n_u32(load_raw<f16, uint32_t>(p));
  v = bits_as<HalfF32>(vget_low_f32(vcvt_f32_f16(vreinterpret_f16_u32(pair))));
#else
  for (int i = 0; i < kF64Lanes; ++i) v[i] = to_f32(p[i]);
#endif
  return widen_f64(v);
}
FINESCOPE_INLINE double to_f64(double x) {
  return x;
}
template <class T>
FINESCOPE_INLINE double to_f64(T x) {
  return static_cast<double>(to_f32(x));
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
