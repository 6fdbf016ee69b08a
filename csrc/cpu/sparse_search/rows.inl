// Sums of rows as they are, for up to 64 queries at a time; included once by each <isa>.cpp, after screen.inl.
//
// A row is read once: its norm, and which of its latents any query has. Those few entries (2 of 96 for one
// query, 44 for 64, where latents are as unequally common as in trained autoencoders) then meet the weights of
// all queries, which lie side by side and, without the latents that nobody asks for, fit into the second-level
// cache. The sums are those of SparseScreen::sum, bit by bit.
#include "cpu/sparse_search/kernels.h"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// Whether the latents of a row ascend: then the first and the last say whether all are in range.
template <class I>
FINESCOPE_INLINE bool ascends(const I* index, int64_t n) {
#if defined(__AVX2__)
  constexpr int64_t kLanes = 32 / sizeof(I);
  if (sizeof(I) <= 4 && n > kLanes) {
    __m256i wrong = _mm256_setzero_si256();
    for (int64_t i = 1; i < n; i += kLanes) {
      const int64_t at = i + kLanes <= n ? i : n - kLanes;
      const __m256i low = load_raw<I, __m256i>(index + at - 1), high = load_raw<I, __m256i>(index + at);
      // Of unsigned 16 bits the difference, 0 where it would be negative.
      wrong = _mm256_or_si256(
          wrong, sizeof(I) == 2 ? _mm256_cmpeq_epi16(_mm256_subs_epu16(high, low), _mm256_setzero_si256())
                                : _mm256_xor_si256(_mm256_cmpgt_epi32(high, low), _mm256_set1_epi32(-1)));
    }
    return _mm256_testz_si256(wrong, wrong) != 0;
  }
#endif
  return rises(index, n);
}

constexpr int kFour = 4;
// Entries that are fetched beforehand: the processor by itself does not read as far ahead.
constexpr int64_t kAhead = 1024;

template <class I>
FINESCOPE_INLINE bool in_range(const I* index, int64_t n, bool ordered, int64_t latents) {
  if (!ordered) return !out_of_range(index, n, latents);
  return n == 0 || !(out_of_range(index, 1, latents) || out_of_range(index + n - 1, 1, latents));
}

// The entries of a row that the panel has weights for.
struct Kept {
  int64_t n;
  float square;  // of the whole row
};

#if defined(__AVX512F__)
template <class I, class T>
FINESCOPE_INLINE Kept keep(const I* index, const T* value, int64_t n, const int32_t* place, int32_t* places,
                           float* values) {
  VecF32 square = {};
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kF32Lanes) {
    __builtin_prefetch(index + i + kAhead);
    __builtin_prefetch(value + i + kAhead);
    const VecF32 v = load_values(value + i, n - i);
    const VecU32 latent = load_latents(index + i, n - i);
    square = fma(v, v, square);
    const __m512i at = bits_as<__m512i>(gather(reinterpret_cast<const float*>(place), latent));
    const __mmask16 held = _mm512_test_epi32_mask(at, at);
    _mm512_storeu_si512(places + kept, _mm512_maskz_compress_epi32(held, at));
    _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(held, bits_as<__m512>(v)));
    kept += __builtin_popcount(held);
  }
  return {kept, total(square)};
}
#elif defined(__AVX2__)
// For each set of eight lanes, where they go: the lanes of the set first.
struct Packing {
  uint8_t lane[256][8];
  constexpr Packing() : lane{} {
    for (int set = 0; set < 256; ++set) {
      int n = 0;
      for (int l = 0; l < 8; ++l) {
        if (set >> l & 1) lane[set][n++] = static_cast<uint8_t>(l);
      }
    }
  }
};
constexpr Packing kPacking;

template <class I, class T>
FINESCOPE_INLINE Kept keep(const I* index, const T* value, int64_t n, const int32_t* place, int32_t* places,
                           float* values) {
  VecF32 square = {};
  int64_t kept = 0;
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += kF32Lanes) {
    __builtin_prefetch(index + i + kAhead);
    __builtin_prefetch(value + i + kAhead);
    const VecF32 v = load_values(value + i, n - i);
    const VecU32 latent = load_latents(index + i, n - i);
    square = fma(v, v, square);
    const __m256i at = bits_as<__m256i>(gather(reinterpret_cast<const float*>(place), latent));
    const int none = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(at, zero)));
    const int held = none ^ 0xff;
    const __m256i order =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPacking.lane[held])));
    const __m256i packed = _mm256_permutevar8x32_epi32(at, order);
    std::memcpy(places + kept, &packed, sizeof(packed));
    store_f32(bits_as<VecF32>(_mm256_permutevar8x32_ps(bits_as<__m256>(v), order)), values + kept);
    kept += __builtin_popcount(static_cast<unsigned>(held));
  }
  return {kept, total(square)};
}
#else
template <class I, class T>
FINESCOPE_INLINE Kept keep(const I* index, const T* value, int64_t n, const int32_t* place, int32_t* places,
                           float* values) {
  VecF32 square = {};
  for (int64_t i = 0; i < n; i += kF32Lanes) {
    const VecF32 v = load_values(value + i, n - i);
    square = fma(v, v, square);
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    places[kept] = place[index[i]];
    values[kept] = static_cast<float>(to_f64(value[i]));
    kept += places[kept] != 0;
  }
  return {kept, total(square)};
}
#endif

// sums[q] = sum over the entries of (value * weight + 2^14) >> 15, for W queries. Entries come in fours, of which
// the last may have place 0. Both halves of a word hold the value.
template <int W>
FINESCOPE_INLINE void weigh(const int16_t* weights, const int32_t* places, const uint32_t* words, int64_t n,
                            int16_t* sums) {
#if defined(__AVX512F__)
  if (W >= 32) {
    constexpr int kRegisters = W >= 32 ? W / 32 : 1;
    __m512i sum[kRegisters];
    for (int r = 0; r < kRegisters; ++r) sum[r] = bits_as<__m512i>(VecU32{});
    for (int64_t i = 0; i < n; i += kFour) {
#pragma GCC unroll 4
      for (int j = 0; j < kFour; ++j) {
        const int16_t* at = weights + kPlaceUnit * int64_t{places[i + j]};
        const __m512i value = _mm512_set1_epi32(static_cast<int32_t>(words[i + j]));
        for (int r = 0; r < kRegisters; ++r) {
          const __m512i weight = load_raw<int16_t, __m512i>(at + 32 * r);
          sum[r] = _mm512_add_epi16(sum[r], _mm512_mulhrs_epi16(value, weight));
        }
      }
    }
    for (int r = 0; r < kRegisters; ++r) std::memcpy(sums + 32 * r, &sum[r], sizeof(sum[r]));
    return;
  }
#endif
#if defined(__AVX2__)
  __m256i sum[W / 16];
  for (int r = 0; r < W / 16; ++r) sum[r] = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += kFour) {
#pragma GCC unroll 4
    for (int j = 0; j < kFour; ++j) {
      const int16_t* at = weights + kPlaceUnit * int64_t{places[i + j]};
      const __m256i value = _mm256_set1_epi32(static_cast<int32_t>(words[i + j]));
      for (int r = 0; r < W / 16; ++r) {
        const __m256i weight = load_raw<int16_t, __m256i>(at + 16 * r);
        sum[r] = _mm256_add_epi16(sum[r], _mm256_mulhrs_epi16(value, weight));
      }
    }
  }
  for (int r = 0; r < W / 16; ++r) std::memcpy(sums + 16 * r, &sum[r], sizeof(sum[r]));
#else
  int16_t sum[W] = {};
  for (int64_t i = 0; i < n; ++i) {
    const int16_t* at = weights + kPlaceUnit * int64_t{places[i]};
    const int16_t value = static_cast<int16_t>(words[i]);
    for (int q = 0; q < W; ++q) sum[q] = static_cast<int16_t>(sum[q] + product(value, at[q]));
  }
  std::memcpy(sums, sum, sizeof(sum));
#endif
}

// Rows whose entries are looked at before they are weighed: a loop of unforeseen length at the end of every row
// would keep the processor from reading on.
constexpr int64_t kBatch = 16;

template <int W, class I, class T>
int64_t sum_rows(const SparseRowsArgs& a, int64_t begin, int64_t end) {
  const I* indices = static_cast<const I*>(a.corpus.indices);
  const T* values = static_cast<const T*>(a.corpus.values);
  const int64_t* indptr = a.corpus.indptr;
  for (int64_t row = begin; row < end;) {
    struct {
      int64_t first, n;
      float scale;
    } found[kBatch];
    int64_t rows = 0, used = 0;
    for (; rows < kBatch && row + rows < end; ++rows) {
      const int64_t first = indptr[row + rows], n = indptr[row + rows + 1] - first;
      if (rows > 0 && used + n + 32 > a.room) break;
      const I* index = indices + first;
      const bool ordered = ascends(index, n);
      if (!in_range(index, n, ordered, a.corpus.latents)) return row + rows;
      const Kept kept = keep(index, values + first, n, a.panel.place, a.places + used, a.values + used);
      const bool judged = n == 0 || (in_range(kept.square) && n <= kSparseMostEntries &&
                                     (ordered || !sparse_repeats(index, n)));
      const float norm = __builtin_sqrtf(kept.square);
      a.norm[row + rows - begin] = judged ? norm : __builtin_nanf("");
      found[rows] = {used, judged ? kept.n : 0, n > 0 ? kSparseUnit / norm : 0.0f};
      used += (kept.n + kFour - 1) / kFour * kFour;
    }
    for (int64_t r = 0; r < rows; ++r) {
      int32_t* places = a.places + found[r].first;
      const float* of = a.values + found[r].first;
      const int64_t held = found[r].n;
      for (int64_t i = held; i % kFour != 0; ++i) places[i] = 0;
      const VecF32 scale = VecF32{} + found[r].scale;
      for (int64_t i = 0; i < held; i += kF32Lanes) {
        // As in fill_rows.
        const VecU32 rounded = bits_as<VecU32>(load_f32(of + i) * scale + 12582912.0f);
        const VecU32 twice = (rounded & 0xffffu) | rounded << 16;
        std::memcpy(a.words + i, &twice, sizeof(twice));
      }
      weigh<W>(a.panel.weights, places, a.words, held, a.sums + (row + r - begin) * W);
    }
    row += rows;
  }
  return -1;
}

template <int W, class I>
int64_t rows_values(const SparseRowsArgs& a, int64_t begin, int64_t end) {
  switch (a.corpus.dtype) {
    case DType::f32:
      return sum_rows<W, I, float>(a, begin, end);
    case DType::f64:
      return sum_rows<W, I, double>(a, begin, end);
    case DType::bf16:
      return sum_rows<W, I, bf16>(a, begin, end);
    default:
      return sum_rows<W, I, f16>(a, begin, end);
  }
}

template <int W>
int64_t rows_indices(const SparseRowsArgs& a, int64_t begin, int64_t end) {
  switch (a.corpus.index_type) {
    case IndexType::u16:
      return rows_values<W, uint16_t>(a, begin, end);
    case IndexType::i32:
      return rows_values<W, int32_t>(a, begin, end);
    default:
      return rows_values<W, int64_t>(a, begin, end);
  }
}

int64_t rows(const SparseRowsArgs& a, int64_t begin, int64_t end) {
  switch (a.panel.width) {
    case 16:
      return rows_indices<16>(a, begin, end);
    case 32:
      return rows_indices<32>(a, begin, end);
    default:
      return rows_indices<64>(a, begin, end);
  }
}

// The same for one query, whose weights stand by latent: few enough for the cache next to the core.
template <class I, class T>
int64_t one_rows(const SparseOneArgs& a, int64_t begin, int64_t end) {
  const I* indices = static_cast<const I*>(a.corpus.indices);
  const T* values = static_cast<const T*>(a.corpus.values);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = a.corpus.indptr[row], n = a.corpus.indptr[row + 1] - first;
    const I* index = indices + first;
    const T* value = values + first;
    const bool ordered = ascends(index, n);
    if (!in_range(index, n, ordered, a.corpus.latents)) return row;
    VecF32 dot = {}, square = {};
    int64_t i = 0;
    for (; i + kF32Lanes <= n; i += kF32Lanes) {
      __builtin_prefetch(index + i + kAhead);
      __builtin_prefetch(value + i + kAhead);
      const VecF32 v = load_values(value + i, kF32Lanes);
      dot = fma(v, gather(a.query, load_latents(index + i, kF32Lanes)), dot);
      square = fma(v, v, square);
    }
    if (i < n) {
      const VecF32 v = load_values(value + i, n - i);
      dot = fma(v, gather(a.query, load_latents(index + i, n - i)), dot);
      square = fma(v, v, square);
    }
    const float norm = __builtin_sqrtf(total(square));
    const bool judged =
        n > 0 && in_range(norm * norm) && n <= kSparseMostEntries && (ordered || !sparse_repeats(index, n));
    a.norm[row - begin] = judged || n == 0 ? norm : __builtin_nanf("");
    a.sums[row - begin] = static_cast<int16_t>(judged ? __builtin_lrintf(total(dot) / norm) : 0);
  }
  return -1;
}

template <class I>
int64_t one_values(const SparseOneArgs& a, int64_t begin, int64_t end) {
  switch (a.corpus.dtype) {
    case DType::f32:
      return one_rows<I, float>(a, begin, end);
    case DType::f64:
      return one_rows<I, double>(a, begin, end);
    case DType::bf16:
      return one_rows<I, bf16>(a, begin, end);
    default:
      return one_rows<I, f16>(a, begin, end);
  }
}

int64_t one(const SparseOneArgs& a, int64_t begin, int64_t end) {
  switch (a.corpus.index_type) {
    case IndexType::u16:
      return one_values<uint16_t>(a, begin, end);
    case IndexType::i32:
      return one_values<int32_t>(a, begin, end);
    default:
      return one_values<int64_t>(a, begin, end);
  }
}

// Whether any of 16 sums reaches its least.
FINESCOPE_INLINE bool any_reached(const int16_t* sums, const int16_t* least) {
#if defined(__AVX2__)
  const __m256i below =
      _mm256_cmpgt_epi16(load_raw<int16_t, __m256i>(least), load_raw<int16_t, __m256i>(sums));
  return _mm256_movemask_epi8(below) != -1;
#else
  bool any = false;
  for (int q = 0; q < 16; ++q) any |= sums[q] >= least[q];
  return any;
#endif
}

int64_t reach(const int16_t* sums, const float* norm, int64_t rows, const SparsePanelTest& test,
              SparsePanelHit* hits) {
  int64_t n = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < test.width; first += 16) {
      const int16_t* of = sums + row * test.width + first;
      if (test.cosine) {
        if (!any_reached(of, test.least + first)) continue;
      } else {
        bool any = false;
        for (int q = 0; q < 16; ++q) {
          any |= !((static_cast<float>(of[q]) + test.error[first + q]) * norm[row] < test.bound[first + q]);
        }
        if (!any) continue;
      }
      for (int q = 0; q < 16; ++q) {
        const bool hit =
            test.cosine
                ? of[q] >= test.least[first + q]
                : !((static_cast<float>(of[q]) + test.error[first + q]) * norm[row] < test.bound[first + q]);
        hits[n] = {static_cast<int32_t>(row), static_cast<int16_t>(first + q), of[q]};
        n += hit;
      }
    }
  }
  return n;
}

}  // namespace

extern const SparseScreen sparse_screen = {count, fill, rows, one, reach, sum, hits};

}  // namespace FINESCOPE_ISA
}  // namespace finescope
