// Exact top-k over sparse rows on the device; the steps of sparse_cosine_topk and sparse_pair_scores.
//
// Up to 64 queries are a panel: the latents that any of them holds are numbered (a bit per latent, and how
// many bits are set before each word), and each number has a line with what every query holds there. Rows of
// the corpus are screened with lines in bfloat16; what reaches a query's threshold, the exact score of its
// k-th best row so far, is scored exactly on the spot and stored if it is better. Rows are visited in slabs,
// in an order that mixes the corpus; after each slab the k best are kept and the threshold rises.
#pragma once

#include "cuda/stream.h"
#include "kernels.h"

namespace finescope::cuda {

inline constexpr int kPanel = 64;
// Rows that a warp takes at a time.
inline constexpr int64_t kTile = 16;

// The bits of 32 latents that some query holds, and the number of such latents before them.
struct PanelWord {
  uint32_t bits, before;
};

struct SparseFound {
  double score;
  int64_t row;
};

struct PanelQuery {
  double norm;   // exact; not finite: no results
  double error;  // |screened - exact| <= (error + rounding) * |row|, for a query of unit length; or infinity
  // A row is wanted if its exact score is above the threshold, or equals it and the row comes before `row`.
  double threshold;
  int64_t row;
  int64_t kept;              // entries of `found` that are the best so far
  unsigned long long fresh;  // and those added since
  float slope, offset;       // of the screen: see sparse_bounds.h
};

struct SparsePanel {
  int64_t first;        // query of the panel's first column
  int32_t width;        // queries, at most kPanel
  PanelWord* words;     // [(F + 31) / 32]
  uint32_t* lines;      // [lines + 1, kPanel / 2]: two bfloat16, the even query in the low half
  uint32_t blank;       // the last line, which is zero
  double* exact;        // [lines, kPanel]
  PanelQuery* queries;  // [kPanel]
};

struct SparseJob {
  Csr queries, corpus;
  int64_t query_entries, corpus_entries;
  int64_t k;  // at most the rows of the corpus
  bool cosine;
  double floor, min_score;  // what unrounded, and rounded, scores must reach; -inf for none
  const int64_t* exclude;   // [Q, E] ids, ascending in each row, or null
  int64_t E, id_offset;
  const bool* mask;    // [N] or null
  int64_t room;        // of a query in `found`: k and those of a slab
  SparseFound* found;  // [kPanel, room]
};

// Builds the panel; words, lines and exact are zero before.
void launch_sparse_panel(const SparseJob& job, const SparsePanel& panel, cudaStream_t stream);
// Visits tiles first..last of the order, then keeps the best.
void launch_sparse_slab(const SparseJob& job, const SparsePanel& panel, int64_t first, int64_t last,
                        cudaStream_t stream);
// Stores scores (float64 if f64, else float32) and ids of the panel's queries, [Q, k_out].
void launch_sparse_results(const SparseJob& job, const SparsePanel& panel, int64_t k_out, bool f64,
                           void* scores, int64_t* ids, cudaStream_t stream);
// out[q, j] = exact score of query q and corpus row ids[q, j]; -inf for -1 and for what is not finite.
void launch_sparse_pairs(const SparseJob& job, const SparsePanel& panel, const int64_t* ids, int64_t count,
                         double* out, cudaStream_t stream);

}  // namespace finescope::cuda
