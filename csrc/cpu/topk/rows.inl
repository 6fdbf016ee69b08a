// Primitives of the top-k engine on single rows, in terms of vec.h; included once by the baseline, AVX2 and
// AVX-512 sources. Only dots_* must give the same bytes everywhere: the others feed screens, whose errors are
// measured.
#include "cpu/topk/dots.inl"

namespace finescope {
namespace FINESCOPE_ISA {
namespace {

// --- rotation

void multiply(float* row, int64_t d, float factor) {
  int64_t i = 0;
  for (; i + kF32Lanes <= d; i += kF32Lanes) store_f32(load_f32(row + i) * splat(factor), row + i);
  for (; i < d; ++i) row[i] *= factor;
}

float max_magnitude(const float* row, int64_t d) {
  VecU32 largest = {};
  uint32_t result = 0;
  int64_t i = 0;
  for (; i + kF32Lanes <= d; i += kF32Lanes) {
    const VecU32 magnitude = bits_as<VecU32>(load_f32(row + i)) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int l = 0; l < kF32Lanes; ++l) result = largest[l] > result ? largest[l] : result;
  for (; i < d; ++i) {
    const uint32_t magnitude = bits_as<uint32_t>(row[i]) & 0x7fffffffu;
    result = magnitude > result ? magnitude : result;
  }
  return bits_as<float>(result);
}

float step_int8(const float* row, int64_t d) {
  return max_magnitude(row, d) / 127.0f;
}

template <int H>
FINESCOPE_INLINE VecF32 butterfly(VecF32 v) {
  VecI32 partner;
  VecF32 sign;
  for (int l = 0; l < kF32Lanes; ++l) {
    partner[l] = l ^ H;
    sign[l] = (l & H) ? -1.0f : 1.0f;
  }
#if defined(__clang__)
  VecF32 other;
  for (int l = 0; l < kF32Lanes; ++l) other[l] = v[partner[l]];
#else
  const VecF32 other = __builtin_shuffle(v, partner);
#endif
  return add_product_f32(other, v, sign);
}

// Transforms N registers, a power of two of them, of which each is one element.
template <int N>
FINESCOPE_INLINE void hadamard(VecF32* v) {
  if constexpr (N > 1) {
    for (int i = 0; i < N / 2; ++i) {
      const VecF32 a = v[i], b = v[i + N / 2];
      v[i] = a + b;
      v[i + N / 2] = a - b;
    }
    hadamard<N / 2>(v);
    hadamard<N / 2>(v + N / 2);
  }
}

// log2(N) stages in one pass over a block, from distance h on.
template <int N>
FINESCOPE_INLINE void stages(float* row, int64_t block, int64_t h) {
  for (int64_t i = 0; i < block; i += N * h) {
    for (int64_t j = i; j < i + h; j += kF32Lanes) {
      VecF32 v[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) v[n] = load_f32(row + j + n * h);
      hadamard<N>(v);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) store_f32(v[n], row + j + n * h);
    }
  }
}

// Signs, then a Hadamard transform of every block of the largest power of two, then a reflection across the
// blocks.
void rotate(float* row, const uint32_t* signs, int64_t d) {
  int64_t block = 64;
  while (d % (2 * block) == 0) block *= 2;
  const float unit = 1.0f / __builtin_sqrtf(static_cast<float>(block));
  constexpr int64_t kFirst = 4 * kF32Lanes;  // at most a block
  for (int64_t i = 0; i < d; i += kFirst) {
    VecF32 v[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      const int64_t at = i + n * kF32Lanes;
      v[n] = bits_as<VecF32>(bits_as<VecU32>(load_f32(row + at)) ^ load_raw<uint32_t, VecU32>(signs + at));
      v[n] = butterfly<1>(v[n]);
      v[n] = butterfly<2>(v[n]);
      if constexpr (kF32Lanes > 4) v[n] = butterfly<4 % kF32Lanes>(v[n]);
      if constexpr (kF32Lanes > 8) v[n] = butterfly<8 % kF32Lanes>(v[n]);
    }
    hadamard<4>(v);
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) store_f32(v[n] * splat(unit), row + i + n * kF32Lanes);
  }
  for (int64_t at = 0; at < d; at += block) {
    int64_t h = kFirst;
    for (; 8 * h <= block; h *= 8) stages<8>(row + at, block, h);
    if (4 * h <= block)
      stages<4>(row + at, block, h);
    else if (2 * h <= block)
      stages<2>(row + at, block, h);
  }
  const int64_t blocks = d / block;
  if (blocks == 1) return;
  const VecF32 twice_mean = splat(2.0f / static_cast<float>(blocks));
  for (int64_t i = 0; i < block; i += kF32Lanes) {
    VecF32 sum = {};
    for (int64_t b = 0; b < blocks; ++b) sum += load_f32(row + b * block + i);
    sum *= twice_mean;
    for (int64_t b = 0; b < blocks; ++b) store_f32(load_f32(row + b * block + i) - sum, row + b * block + i);
  }
}

// --- low precision

// A root of a sum of squares that was added up in float32 lanes, rounded up.
FINESCOPE_INLINE float root_up(float sum, int64_t d) {
  return __builtin_sqrtf(sum) * (1.0f + static_cast<float>(d / kF32Lanes + kF32Lanes + 8) * 0x1p-23f);
}

// The multiply by 1 / scale rounds twice where a division by scale would be exact.
constexpr float kReciprocal = 0x1p-22f;

#if defined(__AVX2__) && !defined(__AVX512F__)
// 32 whole numbers, four registers of them as float32 with 1.5 * 2^23 added, to bytes in their order.
FINESCOPE_INLINE __m256i bytes_of(VecF32 a, VecF32 b, VecF32 c, VecF32 e) {
  // The lower 16 bits are the number.
  const __m256i low = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(bits_as<__m256i>(a), 16), 16),
                                         _mm256_srai_epi32(_mm256_slli_epi32(bits_as<__m256i>(b), 16), 16));
  const __m256i high = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(bits_as<__m256i>(c), 16), 16),
                                          _mm256_srai_epi32(_mm256_slli_epi32(bits_as<__m256i>(e), 16), 16));
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
#endif

Quantized quantize_int8(const float* row, int64_t d, float inv_scale, int32_t offset, int64_t units,
                        uint32_t* out) {
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer
  int8_t* bytes = reinterpret_cast<int8_t*>(out);
  const VecF32 magic = splat(kMagic), inverse = splat(inv_scale);
  VecF32 err = {}, norm = {};
  VecU32 sum = {};
  int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i added_to_each = _mm256_set1_epi8(static_cast<char>(offset));
  for (; i + 32 <= d; i += 32) {
    VecF32 shifted[4];
    for (int n = 0; n < 4; ++n) {
      const VecF32 v = load_f32(row + i + 8 * n);
      shifted[n] = add_product_f32(magic, v, inverse);
      const VecF32 minus_whole = magic - shifted[n], rest = add_product_f32(minus_whole, v, inverse);
      err = add_product_f32(err, rest, rest);
      norm = add_product_f32(norm, minus_whole, minus_whole);
      sum += bits_as<VecU32>(shifted[n]);
    }
    const __m256i narrow = bytes_of(shifted[0], shifted[1], shifted[2], shifted[3]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + i), _mm256_add_epi8(narrow, added_to_each));
  }
#endif
  for (; i + kF32Lanes <= d; i += kF32Lanes) {
    const VecF32 v = load_f32(row + i);
    const VecF32 shifted = add_product_f32(magic, v, inverse);
    const VecF32 minus_whole = magic - shifted, rest = add_product_f32(minus_whole, v, inverse);
    err = add_product_f32(err, rest, rest);
    norm = add_product_f32(norm, minus_whole, minus_whole);
    sum += bits_as<VecU32>(shifted);
    const VecI32 integer = bits_as<VecI32>(shifted) - bits_as<int32_t>(kMagic);
#if defined(FINESCOPE_NEON)
    const int16x4_t halves = vmovn_s32(bits_as<int32x4_t>(integer + offset));
    const int8x8_t narrow = vmovn_s16(vcombine_s16(halves, halves));
    std::memcpy(bytes + i, &narrow, 4);
#else
    const VecI8 narrow = __builtin_convertvector(integer + offset, VecI8);
    std::memcpy(bytes + i, &narrow, sizeof(narrow));
#endif
  }
  float err2 = total(err), norm2 = total(norm);
  // Modulo 2^32, as the sum of the integers themselves needs far fewer bits.
  uint32_t bits = 0;
  for (int l = 0; l < kF32Lanes; ++l) bits += sum[l];
  int32_t added = static_cast<int32_t>(bits - static_cast<uint32_t>(i) * bits_as<uint32_t>(kMagic));
  for (; i < d; ++i) {
    const float exact = row[i] * inv_scale, whole = __builtin_nearbyintf(exact), rest = exact - whole;
    err2 += rest * rest;
    norm2 += whole * whole;
    added += static_cast<int32_t>(whole);
    bytes[i] = static_cast<int8_t>(static_cast<int32_t>(whole) + offset);
  }
  for (; i < 4 * units; ++i) bytes[i] = static_cast<int8_t>(offset);
  const float size = root_up(norm2, d), rest = root_up(err2, d);
  return {size, rest + (size + rest) * kReciprocal, added};
}

Quantized quantize_bf16(const float* row, int64_t d, float, int32_t, int64_t units, uint32_t* out) {
  bf16* halves = reinterpret_cast<bf16*>(out);
  VecF32 err = {}, norm = {};
  int64_t i = 0;
  for (; i + kF32Lanes <= d; i += kF32Lanes) {
    const VecF32 v = load_f32(row + i);
    store_f32(v, halves + i);
    const VecF32 stored = load_f32(halves + i), rest = v - stored;
    err += rest * rest;
    norm += stored * stored;
  }
  float err2 = total(err), norm2 = total(norm);
  for (; i < d; ++i) {
    store_as(row[i], halves + i);
    const float stored = to_f32(halves[i]), rest = row[i] - stored;
    err2 += rest * rest;
    norm2 += stored * stored;
  }
  for (; i < 2 * units; ++i) halves[i].bits = 0;
  return {root_up(norm2, d), root_up(err2, d), 0};
}

Quantized quantize_f32(const float* row, int64_t d, float, int32_t, int64_t, uint32_t* out) {
  VecF32 norm = {};
  int64_t i = 0;
  for (; i + kF32Lanes <= d; i += kF32Lanes) {
    const VecF32 v = load_f32(row + i);
    norm += v * v;
  }
  float norm2 = total(norm);
  for (; i < d; ++i) norm2 += row[i] * row[i];
  std::memcpy(out, row, static_cast<size_t>(d) * 4);
  return {root_up(norm2, d), 0.0f, 0};
}

#if defined(__AVX512F__)
// out[j] = column j of 16 rows of 16.
FINESCOPE_INLINE void transpose16(const uint32_t* in, int64_t stride, uint32_t* out, int64_t out_stride) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(in + i * stride);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4g + c] holds, in each 128-bit part q, column 4q + c of rows 4g..4g+3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(r[c], r[c + 4], 0x88),
                  high01 = _mm512_shuffle_i32x4(r[c], r[c + 4], 0xdd);
    const __m512i low23 = _mm512_shuffle_i32x4(r[c + 8], r[c + 12], 0x88);
    const __m512i high23 = _mm512_shuffle_i32x4(r[c + 8], r[c + 12], 0xdd);
    _mm512_storeu_si512(out + (c)*out_stride, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(out + (8 + c) * out_stride, _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_storeu_si512(out + (4 + c) * out_stride, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(out + (12 + c) * out_stride, _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
}
#endif

#if defined(FINESCOPE_NEON)
// out[j] = column j of 4 rows of 4.
FINESCOPE_INLINE void transpose4(const uint32_t* in, int64_t stride, uint32_t* out, int64_t out_stride) {
  const uint32x4_t a = vld1q_u32(in), b = vld1q_u32(in + stride);
  const uint32x4_t c = vld1q_u32(in + 2 * stride), d = vld1q_u32(in + 3 * stride);
  const uint64x2_t even01 = vreinterpretq_u64_u32(vtrn1q_u32(a, b)),
                   odd01 = vreinterpretq_u64_u32(vtrn2q_u32(a, b)),
                   even23 = vreinterpretq_u64_u32(vtrn1q_u32(c, d)),
                   odd23 = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
  vst1q_u32(out, vreinterpretq_u32_u64(vtrn1q_u64(even01, even23)));
  vst1q_u32(out + out_stride, vreinterpretq_u32_u64(vtrn1q_u64(odd01, odd23)));
  vst1q_u32(out + 2 * out_stride, vreinterpretq_u32_u64(vtrn2q_u64(even01, even23)));
  vst1q_u32(out + 3 * out_stride, vreinterpretq_u32_u64(vtrn2q_u64(odd01, odd23)));
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
// out[j] = column j of 8 rows of 8.
FINESCOPE_INLINE void transpose8(const uint32_t* in, int64_t stride, uint32_t* out, int64_t out_stride) {
  __m256i r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i * stride));
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // r[4g + c] holds, in each half q, column 4q + c of rows 4g..4g+3.
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c * out_stride),
                        _mm256_permute2x128_si256(r[c], r[c + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (4 + c) * out_stride),
                        _mm256_permute2x128_si256(r[c], r[c + 4], 0x31));
  }
}
#endif

// panel[u * nr + c] = rows[c * stride + u]
void interleave(const uint32_t* rows, int64_t stride, int64_t units, int64_t nr, uint32_t* panel) {
  int64_t u = 0;
#if defined(__AVX512F__)
  for (; u + 16 <= units; u += 16) {
    for (int64_t c = 0; c < nr; c += 16) transpose16(rows + c * stride + u, stride, panel + u * nr + c, nr);
  }
#elif defined(__AVX2__)
  for (; u + 8 <= units; u += 8) {
    for (int64_t c = 0; c < nr; c += 8) transpose8(rows + c * stride + u, stride, panel + u * nr + c, nr);
  }
#elif defined(FINESCOPE_NEON)
  for (; u + 4 <= units; u += 4) {
    for (int64_t c = 0; c < nr; c += 4) transpose4(rows + c * stride + u, stride, panel + u * nr + c, nr);
  }
#endif
  for (; u < units; ++u) {
    for (int64_t c = 0; c < nr; ++c) panel[u * nr + c] = rows[c * stride + u];
  }
}

// --- selection

FINESCOPE_INLINE int64_t count_from(const float* score, int64_t n, float lowest) {
  int64_t i = 0, count = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    count += __builtin_popcount(
        _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i), _mm512_set1_ps(lowest), _CMP_GE_OQ));
  }
#else
  VecI32 below = {};
  for (; i + kF32Lanes <= n; i += kF32Lanes) below += load_f32(score + i) >= splat(lowest);
  count = -static_cast<int64_t>(total(below));
#endif
  for (; i < n; ++i) count += score[i] >= lowest;
  return count;
}

// Integers in the order of the floats with these bits.
FINESCOPE_INLINE int32_t to_key(float x) {
  const int32_t b = bits_as<int32_t>(x);
  return b < 0 ? b ^ 0x7fffffff : b;
}
FINESCOPE_INLINE float from_key(int32_t key) {
  return bits_as<float>(key < 0 ? key ^ 0x7fffffff : key);
}

// Bisection: a dozen passes over a buffer in the first-level cache, each a compare and an add per register.
// Halving the value converges fastest on ordinary data, halving the key on any; so they take turns.
float about_kth(const float* score, int64_t n, int64_t k, int64_t most) {
  VecF32 lowest = splat(score[0]), highest = lowest;
  int64_t at = 0;
  for (; at + kF32Lanes <= n; at += kF32Lanes) {
    const VecF32 v = load_f32(score + at);
    lowest = v < lowest ? v : lowest;
    highest = v > highest ? v : highest;
  }
  float least = lowest[0], greatest = highest[0];
  for (int l = 1; l < kF32Lanes; ++l) {
    least = lowest[l] < least ? lowest[l] : least;
    greatest = highest[l] > greatest ? highest[l] : greatest;
  }
  for (; at < n; ++at) {
    least = score[at] < least ? score[at] : least;
    greatest = score[at] > greatest ? score[at] : greatest;
  }
  int64_t low = to_key(least), high = int64_t{to_key(greatest)} + 1;
  for (int turn = 0; high - low > 1; ++turn) {
    int64_t middle = (low + high) / 2;
    if (turn % 4 != 3) {
      const float top = from_key(static_cast<int32_t>(high - 1));
      middle = to_key(0.5f * from_key(static_cast<int32_t>(low)) + 0.5f * top);
      middle = middle <= low ? low + 1 : middle >= high ? high - 1 : middle;
    }
    const int64_t count = count_from(score, n, from_key(static_cast<int32_t>(middle)));
    if (count < k) {
      high = middle;
    } else {
      low = middle;
      if (count <= most) break;
    }
  }
  return from_key(static_cast<int32_t>(low));
}

int64_t keep(float* score, int32_t* column, int64_t n, float lowest) {
  int64_t kept = 0, i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m512 s = _mm512_loadu_ps(score + i);
    const __m512i c = _mm512_loadu_si512(column + i);
    const __mmask16 m = _mm512_cmp_ps_mask(s, _mm512_set1_ps(lowest), _CMP_GE_OQ);
    _mm512_storeu_ps(score + kept, _mm512_maskz_compress_ps(m, s));
    _mm512_storeu_si512(column + kept, _mm512_maskz_compress_epi32(m, c));
    kept += __builtin_popcount(m);
  }
#endif
  for (; i < n; ++i) {
    const float s = score[i];
    const int32_t c = column[i];
    score[kept] = s;
    column[kept] = c;
    kept += s >= lowest;
  }
  return kept;
}

int64_t pick(const float* score, int64_t n, float lowest, int32_t first, float* to_score,
             int32_t* to_column) {
  int64_t kept = 0, i = 0;
#if defined(__AVX2__)
  // Mostly there is nothing in a register.
  for (; i + kF32Lanes <= n; i += kF32Lanes) {
#if defined(__AVX512F__)
    uint32_t over = _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i), _mm512_set1_ps(lowest), _CMP_GE_OQ);
#else
    uint32_t over = static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(score + i), _mm256_set1_ps(lowest), _CMP_GE_OQ)));
#endif
    for (; over != 0; over &= over - 1) {
      const int64_t at = i + __builtin_ctz(over);
      to_score[kept] = score[at];
      to_column[kept++] = first + static_cast<int32_t>(at);
    }
  }
#endif
  for (; i < n; ++i) {
    if (!(score[i] >= lowest)) continue;
    to_score[kept] = score[i];
    to_column[kept++] = first + static_cast<int32_t>(i);
  }
  return kept;
}

constexpr TopkKernels make_kernels(int nr, int rows, int pack_rows, float most_survivors, Screen screen_f32) {
  return {nr,
          pack_rows,
          most_survivors,
          {screen_f32, nullptr, nullptr, nullptr},
          {{}, {}, {step_int8, 128, 0}, {}},
          {{rows}, {rows}, {rows}, {rows}},
          ScreenKind::int16,
          row_to_f32,
          row_to_f64,
          dots<float>,
          dots<double>,
          squared_norm,
          stream_dots,
          quick_dots,
          block_dots,
          quick_squares,
          multiply,
          rotate,
          {quantize_f32, quantize_bf16, quantize_int8, nullptr},
          interleave,
          about_kth,
          keep,
          pick};
}

}  // namespace
}  // namespace FINESCOPE_ISA
}  // namespace finescope
