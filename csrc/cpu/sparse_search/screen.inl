// The screen of sparse_cosine_topk; included once by each <isa>.cpp. Nothing here decides a
// result: what it computes only has to stay inside the bounds that driver.cpp derives, so the sums of
// squares may be fused.
#include "cpu/sparse_search/kernels.h"
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
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(bits_as<__m512>(v));
#elif defined(__AVX2__)
  const __m256 all = bits_as<__m256>(v);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
#else
  float lanes[kF32Lanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kF32Lanes / 2; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
#endif
}

// The first n (at most a register's worth) values at p as float32, and latents as unsigned 32-bit, zeros
// after them.
template <class T>
FINESCOPE_INLINE VecF32 load_values(const T* p, int64_t n) {
  VecF32 v = {};
  for (int i = 0; i < kF32Lanes && i < n; ++i) v[i] = static_cast<float>(to_f64(p[i]));
  return v;
}
template <class I>
FINESCOPE_INLINE VecU32 load_latents(const I* p, int64_t n) {
  VecU32 v = {};
  for (int i = 0; i < kF32Lanes && i < n; ++i) v[i] = static_cast<uint32_t>(p[i]);
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

// Copy a row to scratch as int32 and float32. Returns its squared norm.
template <class I, class T>
FINESCOPE_INLINE float unpack(const I* index, const T* value, int64_t n, int32_t* latents, float* values) {
  VecF32 square = {};
  for (int64_t i = 0; i < n; i += kF32Lanes) {
    const VecF32 v = load_values(value + i, n - i);
    const VecU32 latent = load_latents(index + i, n - i);
    square = fma(v, v, square);
    store_f32(v, values + i);
    std::memcpy(latents + i, &latent, sizeof(latent));
  }
  return total(square);
}

// Squares below or above these may have lost bits to underflow or overflow; NaN fails both comparisons.
FINESCOPE_INLINE bool in_range(float square) {
  return square > 1e-24f && square < 1e36f;
}

template <class I>
FINESCOPE_INLINE bool out_of_range(const I* index, int64_t n, int64_t latents) {
  if (sizeof(I) == 2 && latents > UINT16_MAX) return false;
  const uint64_t top = static_cast<uint64_t>(latents);
  bool bad = false;
  for (int64_t i = 0; i < n; ++i) {
    // Negative numbers are large when unsigned.
    bad |= sizeof(I) == 8 ? static_cast<uint64_t>(index[i]) >= top
                          : static_cast<uint32_t>(index[i]) >= static_cast<uint32_t>(top);
  }
  return bad;
}

template <class I>
FINESCOPE_INLINE bool rises(const I* index, int64_t n) {
  bool all = true;
  for (int64_t i = 1; i < n; ++i) all &= index[i - 1] < index[i];
  return all;
}

template <class I>
int64_t count_rows(const Csr& corpus, int64_t begin, int64_t end, uint32_t* counts) {
  const I* indices = static_cast<const I*>(corpus.indices);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = corpus.indptr[row], last = corpus.indptr[row + 1];
    if (out_of_range(indices + first, last - first, corpus.latents)) return row;
    for (int64_t i = first; i < last; ++i) ++counts[indices[i]];
  }
  return -1;
}

int64_t count(const Csr& corpus, int64_t begin, int64_t end, uint32_t* counts) {
  switch (corpus.index_type) {
    case IndexType::u16:
      return count_rows<uint16_t>(corpus, begin, end, counts);
    case IndexType::i32:
      return count_rows<int32_t>(corpus, begin, end, counts);
    default:
      return count_rows<int64_t>(corpus, begin, end, counts);
  }
}

template <class I, class T>
void fill_rows(const SparseFillArgs& a, int64_t begin, int64_t end) {
  const I* indices = static_cast<const I*>(a.corpus.indices);
  const T* values = static_cast<const T*>(a.corpus.values);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = a.corpus.indptr[row], n = a.corpus.indptr[row + 1] - first;
    const float square = unpack(indices + first, values + first, n, a.latents, a.values);
    const bool judged = n == 0 || (in_range(square) && n <= kSparseMostEntries &&
                                   (rises(a.latents, n) || !sparse_repeats(a.latents, n)));
    const float norm = __builtin_sqrtf(square);
    a.norm[row - begin] = judged ? norm : __builtin_nanf("");
    const uint32_t id = static_cast<uint32_t>(row - begin);
    const VecF32 scale = VecF32{} + (judged && n > 0 ? kSparseUnit / norm : 0.0f);
    for (int64_t i = 0; i < n; i += kF32Lanes) {
      // Added to a float, 1.5 * 2^23 rounds it to a whole number that stands in its last 16 bits.
      const VecU32 rounded = bits_as<VecU32>(load_f32(a.values + i) * scale + 12582912.0f);
      // The words take the place of the values.
      store_f32(bits_as<VecF32>(judged ? (rounded << 16 | id) : VecU32{} + id), a.values + i);
    }
    for (int64_t i = 0; i < n; ++i) {
      a.words[a.cursor[a.latents[i]]++] = bits_as<uint32_t>(a.values[i]);
    }
  }
}

template <class I>
void fill_values(const SparseFillArgs& a, int64_t begin, int64_t end) {
  switch (a.corpus.dtype) {
    case DType::f32:
      return fill_rows<I, float>(a, begin, end);
    case DType::f64:
      return fill_rows<I, double>(a, begin, end);
    case DType::bf16:
      return fill_rows<I, bf16>(a, begin, end);
    default:
      return fill_rows<I, f16>(a, begin, end);
  }
}

void fill(const SparseFillArgs& a, int64_t begin, int64_t end) {
  switch (a.corpus.index_type) {
    case IndexType::u16:
      return fill_values<uint16_t>(a, begin, end);
    case IndexType::i32:
      return fill_values<int32_t>(a, begin, end);
    default:
      return fill_values<int64_t>(a, begin, end);
  }
}

FINESCOPE_INLINE VecF32 gather(const float* p, VecU32 at) {
#if defined(__AVX512F__)
  return bits_as<VecF32>(
      _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, bits_as<__m512i>(at), p, sizeof(float)));
#elif defined(__AVX2__)
  return bits_as<VecF32>(_mm256_i32gather_ps(p, bits_as<__m256i>(at), sizeof(float)));
#else
  VecF32 v;
  for (int i = 0; i < kF32Lanes; ++i) v[i] = p[at[i]];
  return v;
#endif
}

FINESCOPE_INLINE int16_t product(int16_t value, int16_t weight) {
  return static_cast<int16_t>((int32_t{value} * weight + (1 << 14)) >> 15);
}

// Sixteen entries of a list: the products of their values, each in the upper half of its word.
FINESCOPE_INLINE void products16(const uint32_t* words, int16_t weight, uint32_t* out) {
#if defined(__AVX2__)
  const __m256i w = _mm256_set1_epi32(static_cast<int32_t>(uint32_t{static_cast<uint16_t>(weight)} << 16));
  for (int half = 0; half < 16; half += 8) {
    const __m256i entries = load_raw<uint32_t, __m256i>(words + half);
    const __m256i scaled = _mm256_mulhrs_epi16(entries, w);
    std::memcpy(out + half, &scaled, sizeof(scaled));
  }
  // They are read one by one, which GCC would do by taking registers to pieces.
  asm volatile("" : : "r"(out) : "memory");
#else
  for (int i = 0; i < 16; ++i) {
    const int16_t scaled = product(static_cast<int16_t>(words[i] >> 16), weight);
    out[i] = uint32_t{static_cast<uint16_t>(scaled)} << 16;
  }
#endif
}

FINESCOPE_INLINE void add_entry(uint32_t word, uint32_t scaled, int16_t* sums) {
  // Unsigned, so that a sum of a row that is not judged may wrap.
  uint16_t* sum = reinterpret_cast<uint16_t*>(sums) + (word & 0xffffu);
  *sum = static_cast<uint16_t>(*sum + (scaled >> 16));
}

FINESCOPE_INLINE void add_list(const uint32_t* words, int64_t n, int16_t weight, int16_t* sums) {
  // The sums go through memory one by one: rows are met in no pattern, and scattered stores of whole
  // registers are no faster where they exist.
  uint32_t scaled[16];
  for (; n >= 16; n -= 16, words += 16) {
    products16(words, weight, scaled);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) add_entry(words[i], scaled[i], sums);
  }
  if (n == 0) return;
  products16(words, weight, scaled);  // the words after a list may be read
  for (int64_t i = 0; i < n; ++i) add_entry(words[i], scaled[i], sums);
}

FINESCOPE_INLINE void add_full(const uint32_t* words, int64_t rows, int16_t weight, int16_t* sums) {
  const int16_t* values = reinterpret_cast<const int16_t*>(words);
#if defined(__AVX2__)
  const __m256i w = _mm256_set1_epi16(weight);
  for (int64_t i = 0; i < rows; i += 16) {
    const __m256i scaled = _mm256_mulhrs_epi16(load_raw<int16_t, __m256i>(values + i), w);
    const __m256i sum = _mm256_add_epi16(load_raw<int16_t, __m256i>(sums + i), scaled);
    std::memcpy(sums + i, &sum, sizeof(sum));
  }
#else
  for (int64_t i = 0; i < rows; ++i) sums[i] = static_cast<int16_t>(sums[i] + product(values[i], weight));
#endif
}

void sum(const SparseWindow& window, const SparseTerm* terms, int64_t n, int16_t* sums) {
  std::memset(sums, 0, static_cast<size_t>(window.rows + 15) / 16 * 32);
  // Which lists are needed is known beforehand, where they lie is not: fetch first the one, then the other.
  constexpr int64_t kFar = 12, kNear = 4;
  for (int64_t t = 0; t < n; ++t) {
    if (t + kFar < n) {
      __builtin_prefetch(window.start + terms[t + kFar].latent);
      __builtin_prefetch(window.count + terms[t + kFar].latent);
    }
    if (t + kNear < n) {
      const uint32_t* next = window.words + window.start[terms[t + kNear].latent];
      const int64_t entries = window.count[terms[t + kNear].latent];
      const int64_t words = entries == kSparseFull ? 64 : entries;
      for (int64_t at = 0; at < words; at += 16) __builtin_prefetch(next + at);
    }
    const uint32_t* words = window.words + window.start[terms[t].latent];
    const uint16_t entries = window.count[terms[t].latent];
    if (entries == kSparseFull) {
      add_full(words, window.rows, terms[t].weight, sums);
    } else {
      add_list(words, entries, terms[t].weight, sums);
    }
  }
}

// Bit i: sums[i] >= least, for 32 sums.
#if defined(__AVX2__)
FINESCOPE_INLINE uint32_t reached(const int16_t* sums, int16_t least) {
  const __m256i bound = _mm256_set1_epi16(least);
  __m256i below[2];
  for (int half = 0; half < 2; ++half)
    below[half] = _mm256_cmpgt_epi16(bound, load_raw<int16_t, __m256i>(sums + 16 * half));
  // Packing takes 128 bits of each in turn.
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(below[0], below[1]), 0xd8);
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
}
#else
FINESCOPE_INLINE uint32_t reached(const int16_t* sums, int16_t least) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= uint32_t{sums[i] >= least} << i;
  return bits;
}
#endif

int64_t hits(const SparseWindow& window, const int16_t* sums, const SparseTest& test, SparseHit* found) {
  constexpr int64_t kBlock = 128;
  int64_t n = 0;
  for (int64_t block = 0; block < window.rows; block += kBlock) {
    const int64_t end = block + kBlock < window.rows ? block + kBlock : window.rows;
    bool any = false;
    if (test.cosine) {
      int16_t most = INT16_MIN;
      for (int64_t i = block; i < end; ++i) most = sums[i] > most ? sums[i] : most;
      any = most >= test.least;
    } else {
      for (int64_t i = block; i < end; ++i) {
        any |= !((static_cast<float>(sums[i]) + test.error) * window.norm[i] < test.bound);
      }
    }
    if (!any) continue;
    const int16_t least = static_cast<int16_t>(test.least < INT16_MIN ? INT16_MIN : test.least);
    int64_t i = block;
    for (; test.cosine && i + 32 <= end; i += 32) {
      uint32_t bits = reached(sums + i, least);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t row = i + __builtin_ctz(bits);
        found[n++] = {static_cast<int32_t>(row), sums[row]};
      }
    }
    for (; i < end; ++i) {
      const bool hit = test.cosine
                           ? sums[i] >= test.least
                           : !((static_cast<float>(sums[i]) + test.error) * window.norm[i] < test.bound);
      found[n] = {static_cast<int32_t>(i), sums[i]};
      n += hit;
    }
  }
  return n;
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
