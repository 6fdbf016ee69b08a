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

FINESCOPE_INLINE float narrow(double x) {
  return static_cast<float>(x);
}
template <class T>
FINESCOPE_INLINE float narrow(T x) {
  return to_f32(x);
}
FINESCOPE_INLINE VecF32 load_narrow(const double* p) {
  VecF32 v;
  for (int i = 0; i < kF32Lanes; ++i) v[i] = static_cast<float>(p[i]);
  return v;
}
template <class T>
FINESCOPE_INLINE VecF32 load_narrow(const T* p) {
  return load_f32(p);
}

// Copy a row to scratch as int32 and float32. Returns its squared norm; `top` gets its largest latent,
// unsigned.
template <class I, class T>
FINESCOPE_INLINE float unpack(const I* index, const T* value, int64_t n, int32_t* latents, float* values,
                              uint64_t* top) {
  VecF32 square = {};
  uint64_t most = 0;
  int64_t i = 0;
  for (; i + kF32Lanes <= n; i += kF32Lanes) {
    const VecF32 v = load_narrow(value + i);
    square = fma(v, v, square);
    store_f32(v, values + i);
  }
  float rest = 0.0f;
  for (; i < n; ++i) {
    values[i] = narrow(value[i]);
    rest += values[i] * values[i];
  }
  if (sizeof(I) <= 4) {
    uint32_t seen = 0;
    for (i = 0; i < n; ++i) {
      const uint32_t latent = static_cast<uint32_t>(index[i]);
      seen = seen > latent ? seen : latent;
      latents[i] = static_cast<int32_t>(latent);
    }
    most = seen;
  } else {
    for (i = 0; i < n; ++i) {
      const uint64_t latent = static_cast<uint64_t>(index[i]);
      most = most > latent ? most : latent;
      latents[i] = static_cast<int32_t>(latent);
    }
  }
  *top = most;
  return total(square) + rest;
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

FINESCOPE_INLINE float dot(const SparseScreenArgs& a, int64_t n) {
  const float* query = static_cast<const float*>(a.panel);
  int64_t i = 0;
  float sum = 0.0f;
#if defined(__AVX512F__)
  __m512 acc = _mm512_setzero_ps();
  for (; i + 16 <= n; i += 16) {
    const __m512 q =
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, _mm512_loadu_si512(a.latents + i), query, 4);
    acc = _mm512_fmadd_ps(q, _mm512_loadu_ps(a.values + i), acc);
  }
  sum = total(bits_as<VecF32>(acc));
#else
  // Four chains: gathers of older instruction sets are no faster than loads.
  float part[4] = {};
  for (; i + 4 <= n; i += 4) {
    for (int c = 0; c < 4; ++c) part[c] += query[a.latents[i + c]] * a.values[i + c];
  }
  sum = (part[0] + part[2]) + (part[1] + part[3]);
#endif
  for (; i < n; ++i) sum += query[a.latents[i]] * a.values[i];
  return sum;
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
    uint64_t top;
    const float square = unpack(indices + first, values + first, n, a.latents, a.values, &top);
    if (n > 0 && top >= static_cast<uint64_t>(a.corpus.latents)) return -1 - row;
    // Squares below or above these may have lost bits to underflow or overflow; NaN fails both comparisons.
    if (n > 0 && !(square > 1e-24f && square < 1e36f)) {
      hits[count++] = {row, -1, 0.0f, 0.0f};
      continue;
    }
    const float norm = __builtin_sqrtf(square);
    if (a.width == 1) {
      const float sum = dot(a, n);
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
