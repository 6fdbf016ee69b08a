// The screens of AVX2 in whole numbers. It has no instruction that adds products of bytes to 32 bits; these
// take one multiply and one add for 32 products of bytes, or 16 of 16-bit numbers, where float32 takes a
// multiply-add for 8: four times its speed, and twice.
//
// Bytes. vpmaddubsw adds two products of an unsigned and a signed byte to 16 bits, and saturates there;
// vpaddw adds 16 bits and wraps around. The sums are exact all the same:
//   - Elements of x̂ and ŵ are at most 90 in size, those of ŵ stored with 90 added. So a sum of two products
//   is
//     at most 2 * 180 * 90 = 32400 < 2^15: vpmaddubsw never saturates.
//   - A 16-bit lane adds every second pair of a chunk of 64 elements, starting from -90 times the sum of
//   these
//     elements of x̂; what it holds is the sum of their products x̂ŵ, modulo 2^16. By Cauchy and Schwarz that
//     is at most |x̂||ŵ| over these 32 elements, and steps are so wide that neither norm exceeds the root of
//     32767. So it lies between -32767 and 32767, and is what the lane holds.
//   - Chunks are added in 32 bits: 2^15 elements, of products up to 8100, are below 2^28.
//
// 16-bit numbers. vpmaddwd adds two products to 32 bits, at most 2 * 32767^2 < 2^31; vpaddd wraps around.
// Neither norm exceeds the root of 2^31 - 1, so the whole sum lies within 32 bits and is what the lane holds. The
// levels that have vpdpwssd, which is both in one, take their rows from here.
#include "cpu/topk/tile256.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

constexpr int kChunkUnits = 16;
constexpr float kSteps = 90.0f;
// The root of 32767 is 181.01; rounding 32 elements to whole numbers adds up to sqrt(32) / 2 = 2.83 to a
// norm.
constexpr float kLaneNorm = 178.0f;
// The root of 2^31 - 1 is 46340.95; rounding 2^15 elements adds up to sqrt(2^15) / 2 = 90.5 to a norm, and
// float32 adds up their squares to a part in 2^12.
constexpr float kNorm = 46200.0f;
constexpr float kWords = 32767.0f;

inline float greatest(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline float total(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Rows end in zeros up to a multiple of 64.
float step_int8(const float* row, int64_t d) {
  __m256 largest = _mm256_setzero_ps(), norm = largest;
  for (int64_t i = 0; i < d; i += 4 * kChunkUnits) {
    __m256 sum = _mm256_setzero_ps();
    for (int j = 0; j < 4 * kChunkUnits; j += 8) {
      const __m256 v = _mm256_loadu_ps(row + i + j);
      largest = _mm256_max_ps(largest, magnitude(v));
      sum = _mm256_fmadd_ps(v, v, sum);
    }
    // Elements 0, 1, 4, 5 of a register fall to one lane, the others to the next.
    sum = _mm256_add_ps(sum, _mm256_permute_ps(sum, 0xb1));
    norm = _mm256_max_ps(norm, _mm256_add_ps(sum, _mm256_permute2f128_ps(sum, sum, 1)));
  }
  const float by_size = greatest(largest) / kSteps, by_norm = __builtin_sqrtf(greatest(norm)) / kLaneNorm;
  return by_size > by_norm ? by_size : by_norm;
}

float step_int16(const float* row, int64_t d) {
  __m256 largest = _mm256_setzero_ps(), sum = largest;
  for (int64_t i = 0; i < d; i += 8) {
    const __m256 v = _mm256_loadu_ps(row + i);
    largest = _mm256_max_ps(largest, magnitude(v));
    sum = _mm256_fmadd_ps(v, v, sum);
  }
  const float by_size = greatest(largest) / kWords, by_norm = __builtin_sqrtf(total(sum)) / kNorm;
  return by_size > by_norm ? by_size : by_norm;
}

Quantized quantize_int16(const float* row, int64_t d, float inv_scale, int32_t, int64_t units,
                         uint32_t* out) {
  int16_t* words = reinterpret_cast<int16_t*>(out);
  __m256 err = _mm256_setzero_ps(), norm = err;
  const __m256 inverse = _mm256_set1_ps(inv_scale);
  const auto words_of = [&](__m256 v) {
    const __m256 exact = _mm256_mul_ps(v, inverse);
    const __m256i integer = _mm256_cvtps_epi32(exact);
    const __m256 whole = _mm256_cvtepi32_ps(integer), rest = _mm256_sub_ps(exact, whole);
    err = _mm256_fmadd_ps(rest, rest, err);
    norm = _mm256_fmadd_ps(whole, whole, norm);
    const __m256i narrow = _mm256_packs_epi32(integer, integer);
    return _mm_unpacklo_epi64(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1));
  };
  int64_t i = 0;
  for (; i + 8 <= d; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words + i), words_of(_mm256_loadu_ps(row + i)));
  }
  if (i < 2 * units) {
    alignas(32) float rest[8] = {};
    alignas(16) int16_t last[8];
    for (int64_t j = i; j < d; ++j) rest[j - i] = row[j];
    _mm_store_si128(reinterpret_cast<__m128i*>(last), words_of(_mm256_load_ps(rest)));
    __builtin_memcpy(words + i, last, static_cast<size_t>(2 * units - i) * 2);
  }
  // A root of a sum of squares that was added up in float32 lanes, and the multiply by 1 / scale, which
  // rounds twice where a division by scale would be exact; rounded up.
  const float up = 1.0f + static_cast<float>(d / 8 + 16) * 0x1p-23f;
  const float size = __builtin_sqrtf(total(norm)) * up, error = __builtin_sqrtf(total(err)) * up;
  return {size, error + (size + error) * 0x1p-22f, 0};
}

// One piece, because compilers move the multiplies away from the adds, where registers for the products in
// between are not left: they would then keep half of the accumulators on the stack.
struct ByteProducts {
  static constexpr int kChunk = kChunkUnits;
  static inline void add(__m256i& acc, __m256i w, __m256i x) {
    __m256i products;
    __asm__("vpmaddubsw %[x], %[w], %[products]\n\tvpaddw %[products], %[acc], %[acc]"
            : [acc] "+x"(acc), [products] "=&x"(products)
            : [w] "x"(w), [x] "x"(x));
  }
};

struct WordProducts {
  static constexpr int kChunk = 0;
  static inline void add(__m256i& acc, __m256i w, __m256i x) {
    __m256i products;
    __asm__("vpmaddwd %[x], %[w], %[products]\n\tvpaddd %[products], %[acc], %[acc]"
            : [acc] "+x"(acc), [products] "=&x"(products)
            : [w] "x"(w), [x] "x"(x));
  }
};

}  // namespace

void add_words(TopkKernels* kernels, Screen words_screen) {
  const int words = static_cast<int>(ScreenKind::int16);
  kernels->screen[words] = words_screen;
  kernels->whole[words] = {step_int16, 0, 0};
  kernels->quantize[words] = quantize_int16;
}

void add_whole_screens(TopkKernels* kernels) {
  const int bytes = static_cast<int>(ScreenKind::int8);
  kernels->screen[bytes] = screen<ByteProducts>;
  kernels->whole[bytes] = {step_int8, static_cast<int32_t>(kSteps), kChunkUnits};
  add_words(kernels, screen<WordProducts>);
}

}  // namespace FINESCOPE_ISA
}  // namespace finescope
