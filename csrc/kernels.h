// The contract between bindings and kernels: plain structs and pointers, no torch on this side of it.
//
// Letters: B tokens, D model width, F latents, K kept per token. All matrices are row-major; a stride counts
// elements from one row to the next, and the elements of a row are always adjacent. Callers have checked
// shapes and index ranges; kernels trust them.
//
// Every kernel gives the same bytes for every instruction set and every split of its range over threads. It
// follows that sums have a fixed order, and that multiply and add round separately unless the product is
// exact.
#pragma once

#include <cstddef>
#include <cstdint>

namespace finescope {

enum class DType : int32_t { f32, f64, bf16, f16 };

// A row-major matrix of any of the four dtypes.
struct Matrix {
  const void* data;
  int64_t stride;
  DType dtype;
};

// What a search scores pairs by; encode: the inner product plus a bias, of which only positive ones count.
enum class Metric : int32_t { encode, ip, cosine };
// The precision of a search's screen, as callers ask for it.
enum class ScreenChoice : int32_t { automatic, none, f32, bf16, int8 };
// What a search writes: [B, k] scores, float64 if f64 else float32, and ids.
struct TopkOutput {
  void* score;
  bool f64;
  int64_t* id;
};

// out[b, :] = sum over j = 0..K-1 of values[b, j] * weight[indices[b, j], :], then + bias.
// Sums in the accumulator type (float64 for f64 weights, float32 otherwise), from +0, in ascending j.
struct SparseDecodeArgs {
  const void* values;      // [B, K] accumulator type, contiguous
  const int64_t* indices;  // [B, K] contiguous
  Matrix weight;           // [F, D]
  const void* bias;        // [D] accumulator type, or null
  void* out;               // [B, D] contiguous, dtype of weight
  int64_t K, D;
};

// out[b, j] = <rows[b, :], weight[indices[b, j], :]>, the fixed-order dot: 16 float64 partial sums, lane l
// over d = l, l + 16, ...; then halved 8, 4, 2, 1; rounded once.
struct SampledDotArgs {
  Matrix rows;             // [B, D]
  const int64_t* indices;  // [B, K] contiguous
  Matrix weight;           // [F, D]
  void* out;               // [B, K] contiguous, float64 if f64_out else float32
  bool f64_out;
  int64_t K, D;
};

// out[f, :] = sum over i = start[f]..start[f + 1] of value[i] * rows[row[i], :], from +0 in the accumulator
// type. The pairs are those of an index matrix [B, K], ordered by latent and then by position b * K + j.
struct ScatterRowsArgs {
  const int64_t* start;  // [F + 1]
  const int64_t* row;    // [B * K] the b of each pair
  const void* value;     // [B * K] accumulator type
  Matrix rows;           // [B, D]
  void* out;             // [F, D] contiguous, accumulator type
  int64_t D;
};

// Both gradients of a decoding in one pass over the pairs: `sums` is scatter_rows of the gradient, and
// grad_values[position[i]] = <rows[row[i], :], weight[f, :]>, the fixed-order dot, rounded once.
struct DecodeGradsArgs {
  ScatterRowsArgs sums;
  const int64_t* position;  // [B * K] where in [B, K] each pair stands
  Matrix weight;            // [F, D] dtype of sums.rows
  void* grad_values;        // [B, K] contiguous, accumulator type
};

enum class Reduce : int32_t { mean, max, sum, sqrt_mean, count };

// Document n pools the codes of tokens offsets[n]..offsets[n + 1]. Entries that are not positive and finite
// are dropped; the rest are summed per latent in float64 in the order (token, slot). The `keep` strongest
// latents (value descending, then latent ascending) are stored in ascending order, padded with value 0 and
// latent -1.
struct PoolArgs {
  const void* values;      // [B, K] contiguous, float64 if f64 else float32
  const int64_t* indices;  // [B, K] contiguous
  bool f64;
  const int64_t* offsets;  // [N + 1]
  int64_t K;
  Reduce reduce;
  int64_t keep;
  float* out_values;     // [N, keep]
  int64_t* out_indices;  // [N, keep]
};

// Pool documents begin..end. Returns the lowest negative latent that has a positive value, or 0 if there is
// none.
int64_t pool_codes(const PoolArgs& args, int64_t begin, int64_t end);

// The first of n indices outside [0, limit), or n.
using FindOutOfRange = int64_t (*)(const int64_t* indices, int64_t n, int64_t limit);
// The kernels work on rows (or latents) begin..end of their output.
using SparseDecode = void (*)(const SparseDecodeArgs&, int64_t begin, int64_t end);
using SampledDot = void (*)(const SampledDotArgs&, int64_t begin, int64_t end);
using ScatterRows = void (*)(const ScatterRowsArgs&, int64_t begin, int64_t end);
using DecodeGrads = void (*)(const DecodeGradsArgs&, int64_t begin, int64_t end);

// N sparse rows in compressed form: row n holds entries indptr[n]..indptr[n + 1], latents ascending.
enum class IndexType : int32_t { u16, i32, i64 };
struct Csr {
  const int64_t* indptr;  // [N + 1]
  const void* indices;    // [nnz]
  const void* values;     // [nnz]
  IndexType index_type;
  DType dtype;
  int64_t rows, latents;
};

// out[n, :] = sum over the entries of row n, in their order, of value * panel[latent, :], from +0 in float64;
// NaN is the quiet one with nothing in it.
struct SparseMatmulArgs {
  Csr codes;            // [N, F]
  const double* panel;  // [F, C]
  int64_t stride;       // of the panel
  double* out;          // [N, C] contiguous
  int64_t C;
};
// Rows begin..end. Returns the first entry met whose latent is outside 0..F-1, or -1.
using SparseMatmul = int64_t (*)(const SparseMatmulArgs&, int64_t begin, int64_t end);

// Rows turned over: those that hold latent f, and with what values, are start[f]..start[f + 1].
constexpr int64_t kTurnedRows = 2048;
struct TurnedRows {
  uint32_t* start;  // [F + 2]
  uint16_t* row;    // one for every entry
  double* value;    // likewise
};

// out[q, n] = sum over the latents that query q and row n both hold, ascending, of the product of their values, from
// +0 in float64; NaN is the quiet one. A row with a value that isn't finite gives NaN.
struct SparseProductsArgs {
  Csr rows;               // [N, F], of which as many entries as `room` has, and 2^32 - 1 at most, in one call
  const int64_t* indptr;  // [queries + 1]
  const int64_t* latent;  // in range
  const double* value;
  int64_t count;  // queries
  double* out;    // [queries, N] contiguous
  TurnedRows room;
};
// Rows begin..end, kTurnedRows at most. Returns as SparseMatmul.
using SparseProducts = int64_t (*)(const SparseProductsArgs&, int64_t begin, int64_t end);

// The kernels of sparse codes for one instruction set.
struct SparseKernels {
  FindOutOfRange find_out_of_range;
  SparseDecode sparse_decode;
  SampledDot sampled_dot;
  ScatterRows scatter_rows;
  DecodeGrads decode_grads;
  SparseMatmul sparse_matmul;
  SparseProducts sparse_products;
};

}  // namespace finescope
