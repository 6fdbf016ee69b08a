// Exact top-k over sparse rows: a certified screen in low precision, then float64 in the stated order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/isa.h"
#include "kernels.h"

namespace finescope {

namespace scalar {
extern const SparseScreen sparse_screen;
}
namespace avx2 {
extern const SparseScreen sparse_screen;
}
namespace avx512 {
extern const SparseScreen sparse_screen;
}
namespace neon {
extern const SparseScreen sparse_screen;
}

SparseScreen sparse_screen();

struct SparseSearchArgs {
  Csr queries, corpus;
  int64_t k;
  bool cosine;
  double min_score;        // -inf for none
  const int64_t* exclude;  // [Q, E] corpus rows, -1 for none, or null
  int64_t E;
  const bool* mask;  // [N] true where a row may be returned, or null
};

// One entry of a result, or a candidate for it: what is known of its score.
struct SparseCandidate {
  double low, high;
  int64_t row;
};

// Dot products and norms as the contract defines them, for one query at a time.
class ExactSparse {
 public:
  explicit ExactSparse(const SparseSearchArgs& args);
  // Spread query q over the latents; its entries replace those of the query before.
  void load(int64_t q, double norm);
  // Score of the loaded query and a row; `finite` is false for a row that may never be returned.
  double score(int64_t row, bool* finite) const;

 private:
  const SparseSearchArgs& a_;
  int64_t loaded_ = -1;
  double norm_ = 0.0;
  std::vector<double> dense_;
};

// The norm of a row: the root of the squares summed in ascending latents, float64.
double sparse_norm(const Csr& rows, int64_t row);

// A search, in the order: for each panel, begin(); scan() over all corpus rows, in parallel; finish(), in
// parallel.
class SparseSearch {
 public:
  explicit SparseSearch(const SparseSearchArgs& args);
  ~SparseSearch();

  int64_t panels() const { return (a_.queries.rows + width_ - 1) / width_; }
  // Queries of a panel.
  int64_t first(int64_t panel) const { return panel * width_; }
  int64_t count(int64_t panel) const { return std::min<int64_t>(width_, a_.queries.rows - first(panel)); }

  void begin(int64_t panel, int64_t parts);
  // Scan corpus rows begin..end as part `part`. Returns a row with a latent out of range, or -1.
  int64_t scan(int64_t part, int64_t begin, int64_t end);
  // The results of query q (an index within the panel): at most k, score descending, then row ascending.
  std::vector<SparseCandidate> finish(int64_t q) const;

 private:
  struct Query {
    double norm = 0.0;   // exact
    double scale = 1.0;  // score of one unit of the screen: |q| for the inner product, 1 for cosine
    double error = 0.0;  // |screened - exact| <= error * |row|, for a query of unit length
    bool dead = false;   // not finite: no results
    bool zero = false;   // no entry but zeros: every score is 0
    std::vector<int64_t> excluded;
    std::atomic<double> threshold{-std::numeric_limits<double>::infinity()};
  };
  struct Part;

  bool allowed(const Query& query, int64_t row) const;
  void set_threshold(const Query& query, int64_t q, float* slope, float* offset) const;
  void offer(Part& part, int64_t q, const SparseCandidate& candidate);
  void shrink(Part& part, int64_t q);
  void take(Part& part, const SparseHit& hit);
  std::vector<SparseCandidate> zeros(const Query& query) const;

  const SparseSearchArgs a_;
  int64_t width_, longest_corpus_ = 0, longest_query_ = 0, capacity_;
  int64_t first_ = 0;
  std::vector<uint16_t> panel_;
  std::vector<float> single_;
  std::unique_ptr<Query[]> queries_;
  std::vector<std::unique_ptr<Part>> parts_;
};

}  // namespace finescope
