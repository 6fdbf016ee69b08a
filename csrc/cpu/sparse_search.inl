// The screen of sparse_cosine_topk; included once by each sparse_search_<isa>.cpp. Nothing here decides a
// result: what it computes only has to stay inside the bounds that sparse_search.cpp derives, so sums may be
// fused.
#include "cpu/sparse_search.h"
#include "cpu/vec.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

FINESCOPE_INLINE VecF32 fma(VecF32 a, VecF32 b, VecF32 c) {
#if defined(__AVX512F__)
  return bits_as<VecF32>(_mm512_fmadd_ps(bits_as<__m512>(a), bits_as<__m512>(b), bits_as<__m512>(c)));
#elif defined(__FMA__)
  return bits_as<VecF32>(_mm256_fmadd_ps(bits_as<__m256>(a), bits_as<__m256>(b), bits_as<__m256>(c)));
#elif defined(FINESCOPE_NEON)
  return bits_as<VecF32>(
      vfmaq_f32(bits_as<float32x4_t>(c), bits_as<float32x4_t>(a), bits_as<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

FINESCOPE_INLINE float total(VecF32 v) {
  float lanes[kF32Lanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kF32Lanes / 2; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// The first n (at most a register's worth) values at p as float32, and latents as unsigned 32-bit, zeros
// after them. What does not fit 32 bits becomes the largest number, which no latent is.
template <class T>
FINESCOPE_INLINE VecF32 load_values(const T* p, int64_t n) {
  VecF32 v = {};
  for (int i = 0; i < kF32Lanes && i < n; ++i) v[i] = static_cast<float>(to_f64(p[i]));
  return v;
}
template <class I>
FINESCOPE_INLINE VecU32 load_latents(const I* p, int64_t n) {
  VecU32 v = {};
  for (int i = 0; i < kF32Lanes && i < n; ++i) {
    const uint64_t latent = static_cast<uint64_t>(p[i]);
    v[i] = sizeof(I) == 8 && latent > 0xffffffffu ? 0xffffffffu : static_cast<uint32_t>(latent);
  }
  return v;
}
FINESCOPE_INLINE VecF32 load_values(const bf16* p, int64_t n) {
  bf16 padded[kF32Lanes] = {};
  if (n < kF32Lanes) std::memcpy(padded, p, n * sizeof(bf16));
  return load_f32(n < kF32Lanes ? padded : p);
}
#if defined(__AVX512F__)
FINESCOPE_INLINE __mmask16 first(int64_t n) {
  return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1u);
}
FINESCOPE_INLINE VecF32 load_values(const float* p, int64_t n) {
  return bits_as<VecF32>(_mm512_maskz_loadu_ps(first(n), p));
}
FINESCOPE_INLINE VecF32 load_values(const f16* p, int64_t n) {
  return bits_as<VecF32>(_mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(first(n), p)));
}
FINESCOPE_INLINE VecU32 load_latents(const uint16_t* p, int64_t n) {
  return bits_as<VecU32>(_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(first(n), p)));
}
FINESCOPE_INLINE VecU32 load_latents(const int32_t* p, int64_t n) {
  return bits_as<VecU32>(_mm512_maskz_loadu_epi32(first(n), p));
}
#else
// Whole registers without a test per element; the copies cost only the end of a row.
template <class T>
FINESCOPE_INLINE VecF32 load_padded(const T* p, int64_t n) {
  T padded[kF32Lanes] = {};
  if (n < kF32Lanes) std::memcpy(padded, p, n * sizeof(T));
  return load_f32(n < kF32Lanes ? padded : p);
}
FINESCOPE_INLINE VecF32 load_values(const float* p, int64_t n) {
  return load_padded(p, n);
}
FINESCOPE_INLINE VecF32 load_values(const f16* p, int64_t n) {
  return load_padded(p, n);
}
FINESCOPE_INLINE VecU32 load_latents(const uint16_t* p, int64_t n) {
  uint16_t padded[kF32Lanes] = {};
  if (n < kF32Lanes) std::memcpy(padded, p, n * sizeof(uint16_t));
  return __builtin_convertvector((load_raw<uint16_t, HalfU16>(n < kF32Lanes ? padded : p)), VecU32);
}
FINESCOPE_INLINE VecU32 load_latents(const int32_t* p, int64_t n) {
  int32_t padded[kF32Lanes] = {};
  if (n < kF32Lanes) std::memcpy(padded, p, n * sizeof(int32_t));
  return load_raw<int32_t, VecU32>(n < kF32Lanes ? padded : p);
}
#endif

FINESCOPE_INLINE VecU32 larger(VecU32 a, VecU32 b) {
#if defined(__AVX512F__)
  return bits_as<VecU32>(_mm512_maskz_max_epu32(0xffff, bits_as<__m512i>(a), bits_as<__m512i>(b)));
#else
  const VecU32 greater = bits_as<VecU32>(a > b);
  return (a & greater) | (b & ~greater);
#endif
}
FINESCOPE_INLINE uint32_t largest(VecU32 v) {
  uint32_t most = 0;
  for (int i = 0; i < kF32Lanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Copy a row to scratch as int32 and float32. Returns its squared norm; `top` gets its largest latent,
// unsigned.
template <class I, class T>
FINESCOPE_INLINE float unpack(const I* index, const T* value, int64_t n, int32_t* latents, float* values,
                              uint32_t* top) {
  VecF32 square = {};
  VecU32 most = {};
  for (int64_t i = 0; i < n; i += kF32Lanes) {
    const VecF32 v = load_values(value + i, n - i);
    const VecU32 latent = load_latents(index + i, n - i);
    square = fma(v, v, square);
    most = larger(most, latent);
    store_f32(v, values + i);
    std::memcpy(latents + i, &latent, sizeof(latent));
  }
  *top = largest(most);
  return total(square);
}

// sum[q] over the row for 32 * Lines queries: each 64-byte line of the panel widens to 32 floats. `panel` is
// where the queries begin in the panel rows, which are `stride` bytes long.
template <int Lines>
FINESCOPE_INLINE void accumulate(const SparseScreenArgs& a, int64_t n, const char* panel, int64_t stride,
                                 float* sums) {
  constexpr int kParts = 64 / FINESCOPE_VECTOR_BYTES;
  VecF32 low[Lines][kParts], high[Lines][kParts];
  for (int l = 0; l < Lines; ++l) {
    for (int p = 0; p < kParts; ++p) low[l][p] = high[l][p] = VecF32{};
  }
  for (int64_t i = 0; i < n; ++i) {
    const char* line = panel + a.latents[i] * stride;
    const VecF32 v = VecF32{} + a.values[i];
    for (int l = 0; l < Lines; ++l) {
      for (int p = 0; p < kParts; ++p) {
        const VecU32 pair = load_raw<char, VecU32>(line + 64 * l + FINESCOPE_VECTOR_BYTES * p);
        low[l][p] = fma(v, bits_as<VecF32>(pair << 16), low[l][p]);
        high[l][p] = fma(v, bits_as<VecF32>(pair & 0xffff0000u), high[l][p]);
      }
    }
  }
  for (int l = 0; l < Lines; ++l) {
    for (int p = 0; p < kParts; ++p) {
      store_f32(low[l][p], sums + 32 * l + kF32Lanes * p);
      store_f32(high[l][p], sums + 32 * l + 16 + kF32Lanes * p);
    }
  }
}

// The sum for one query, with the squared norm and largest latent of `unpack`.
template <class I, class T>
FINESCOPE_INLINE float dot(const SparseScreenArgs& a, const I* index, const T* value, int64_t n,
                           float* square, uint32_t* top) {
  const float* query = static_cast<const float*>(a.panel);
#if defined(__AVX512F__)
  VecF32 sum = {}, squares = {};
  VecU32 most = {};
  // Reads stay inside the panel whatever the latents are; the caller looks at the largest afterwards.
  const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>(a.corpus.latents - 1));
  for (int64_t i = 0; i < n; i += kF32Lanes) {
    const VecF32 v = load_values(value + i, n - i);
    const VecU32 latent = load_latents(index + i, n - i);
    most = larger(most, latent);
    const __m512i safe = _mm512_maskz_min_epu32(0xffff, bits_as<__m512i>(latent), limit);
    const __m512 q = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, safe, query, 4);
    sum = fma(v, bits_as<VecF32>(q), sum);
    squares = fma(v, v, squares);
  }
  *top = largest(most);
  *square = total(squares);
  return total(sum);
#else
  *square = unpack(index, value, n, a.latents, a.values, top);
  if (*top >= static_cast<uint64_t>(a.corpus.latents)) return 0.0f;
  // Four chains: gathers of older instruction sets are no faster than loads.
  float part[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int c = 0; c < 4; ++c) part[c] += query[a.latents[i + c]] * a.values[i + c];
  }
  float sum = (part[0] + part[2]) + (part[1] + part[3]);
  for (; i < n; ++i) sum += query[a.latents[i]] * a.values[i];
  return sum;
#endif
}

// Hits among `width` sums; a NaN sum is one, since nothing is known about it.
FINESCOPE_INLINE int64_t compare(const SparseScreenArgs& a, const float* sums, float norm, int64_t row,
                                 SparseHit* hits) {
  int64_t count = 0;
  const VecF32 n = VecF32{} + norm;
  for (int q = 0; q < a.width; q += kF32Lanes) {
    const VecF32 threshold = fma(n, load_f32(a.slope + q), load_f32(a.offset + q));
#if defined(__AVX512F__)
    const VecF32 sum = load_f32(sums + q);
    uint32_t hit = _mm512_cmp_ps_mask(bits_as<__m512>(sum), bits_as<__m512>(threshold), _CMP_NLT_UQ);
    for (; hit != 0; hit &= hit - 1) {
      const int lane = __builtin_ctz(hit);
      hits[count++] = {row, q + lane, sums[q + lane], norm};
    }
#else
    const VecU32 miss = bits_as<VecU32>(load_f32(sums + q) < threshold);
    uint32_t all = 0xffffffffu;
    for (int lane = 0; lane < kF32Lanes; ++lane) all &= miss[lane];
    if (all != 0) continue;
    for (int lane = 0; lane < kF32Lanes; ++lane) {
      if (miss[lane] == 0) hits[count++] = {row, q + lane, sums[q + lane], norm};
    }
#endif
  }
  return count;
}

template <class I, class T>
int64_t screen_rows(const SparseScreenArgs& a, int64_t begin, int64_t end, SparseHit* hits) {
  const I* indices = static_cast<const I*>(a.corpus.indices);
  const T* values = static_cast<const T*>(a.corpus.values);
  float sums[64];
  int64_t count = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = a.corpus.indptr[row], n = a.corpus.indptr[row + 1] - first;
    // Nothing to read, and no latent to read it at, in a corpus without latents.
    if (n > 0 && a.corpus.latents == 0) return -1 - row;
    uint32_t top = 0;
    float square, sum = 0.0f;
    if (a.width == 1) {
      sum = dot(a, indices + first, values + first, n, &square, &top);
    } else {
      square = unpack(indices + first, values + first, n, a.latents, a.values, &top);
    }
    if (n > 0 && top >= static_cast<uint64_t>(a.corpus.latents)) return -1 - row;
    // Squares below or above these may have lost bits to underflow or overflow; NaN fails both comparisons.
    if (n > 0 && !(square > 1e-24f && square < 1e36f)) {
      hits[count++] = {row, -1, 0.0f, 0.0f};
      continue;
    }
    const float norm = __builtin_sqrtf(square);
    if (a.width == 1) {
      if (!(sum < norm * a.slope[0] + a.offset[0])) hits[count++] = {row, 0, sum, norm};
      continue;
    }
    const char* panel = static_cast<const char*>(a.panel);
    const int64_t stride = int64_t{a.width} * 2;
    if (a.width == 64 && kF32Lanes >= 8) {
      accumulate<2>(a, n, panel, stride, sums);
    } else {
      // With small registers the sums of 64 queries would not stay in them: take the halves in turn.
      for (int half = 0; half < a.width / 32; ++half)
        accumulate<1>(a, n, panel + 64 * half, stride, sums + 32 * half);
    }
    count += compare(a, sums, norm, row, hits + count);
  }
  return count;
}

template <class I>
int64_t screen_values(const SparseScreenArgs& a, int64_t begin, int64_t end, SparseHit* hits) {
  switch (a.corpus.dtype) {
    case DType::f32:
      return screen_rows<I, float>(a, begin, end, hits);
    case DType::f64:
      return screen_rows<I, double>(a, begin, end, hits);
    case DType::bf16:
      return screen_rows<I, bf16>(a, begin, end, hits);
    default:
      return screen_rows<I, f16>(a, begin, end, hits);
  }
}

int64_t screen(const SparseScreenArgs& a, int64_t begin, int64_t end, SparseHit* hits) {
  switch (a.corpus.index_type) {
    case IndexType::u16:
      return screen_values<uint16_t>(a, begin, end, hits);
    case IndexType::i32:
      return screen_values<int32_t>(a, begin, end, hits);
    default:
      return screen_values<int64_t>(a, begin, end, hits);
  }
}

}  // namespace

extern const SparseScreen sparse_screen = screen;

}  // namespace FINESCOPE_ISA
}  // namespace finescope
