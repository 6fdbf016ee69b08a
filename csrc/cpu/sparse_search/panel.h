// A search of sparse rows, and what is known of a panel of its queries while windows go by.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/sparse_search/exact.h"
#include "cpu/sparse_search/kernels.h"
#include "cpu/sparse_search/pack.h"

namespace finescope {

// One entry of a result, or a candidate for it: what is known of its score.
struct SparseCandidate {
  double low, high;
  int64_t row;
};

// One call: for each panel of queries, the windows are scanned by all workers, then the queries finished.
class SparseSearch {
 public:
  SparseSearch(const SparseSearchArgs& args, const PackedSparse* packed, const Workers& workers);
  // Returns a row with a latent out of range, or -1.
  int64_t run(const TopkOutput& out);

 private:
  struct Query {
    double norm = 0.0;   // exact
    double scale = 1.0;  // score of a row of length 1 with screened cosine 1: |q|, or 1 for cosine
    double error = 0.0;  // |screened - exact| cosine
    bool dead = false;   // not finite: no results
    bool zero = false;   // no entry but zeros: every score is 0
    std::vector<SparseTerm> terms;
    std::vector<int64_t> excluded;
    std::atomic<double> threshold{-std::numeric_limits<double>::infinity()};
  };
  // Queries whose sums over rows as they are stand side by side.
  struct Side {
    int64_t first, queries;  // within the panel
    int64_t width;
    std::vector<int32_t> place;
    std::vector<int16_t> memory;
    int64_t offset;  // of the weights in it, whose rows do not cross lines of a cache
    SparsePanel panel() const { return {width, place.data(), memory.data() + offset}; }
  };
  // What a worker needs, and what it has found for the queries of the panel.
  struct Part {
    explicit Part(const SparseSearchArgs& args) : exact(args) {}
    std::vector<std::vector<SparseCandidate>> found;
    std::vector<int16_t> sums;
    std::vector<SparseHit> hits;
    ExactSparse exact;
    // For sums over rows as they are.
    std::vector<SparsePanelHit> panel_hits;
    std::vector<int32_t> places;
    std::vector<float> values, norm, query;
    std::vector<uint32_t> words;
  };

  int64_t windows() const { return by_rows_ ? static_cast<int64_t>(edges_.size()) - 1 : packed_->windows(); }
  void begin(int64_t panel);
  void prepare(Query& query, int64_t q);
  bool allowed(const Query& query, int64_t row) const;
  SparseTest test(const Query& query) const;
  bool rows_sooner() const;
  Side side(int64_t first, int64_t queries) const;
  int64_t scan_rows(Part& part, int64_t begin, int64_t end);
  int64_t scan_one(Part& part, int64_t begin, int64_t end);
  void judge_rows(Part& part, const Side& side, const SparseWindow& rows, int64_t begin);
  void offer_all(Part& part, int64_t q, const SparseWindow& window, int64_t begin);
  void scan_lists(Part& part, int64_t window);
  void judge(Part& part, int64_t q, const SparseWindow& window, int64_t begin);
  void offer_unjudged(Part& part, const SparseWindow& window, int64_t begin);
  void put(Part& part, int64_t q, const SparseHit& hit, const SparseWindow& window, int64_t begin);
  void offer(Part& part, int64_t q, const SparseCandidate& candidate);
  void shrink(Part& part, int64_t q);
  void take(Part& part, int64_t q, const SparseWindow& window, int64_t begin, int64_t hits);
  std::vector<SparseCandidate> zeros(const Query& query) const;
  std::vector<SparseCandidate> finish(int64_t q, ExactSparse& exact) const;

  const SparseSearchArgs& a_;
  const PackedSparse* packed_;
  const Workers& workers_;
  std::vector<int64_t> edges_;
  int64_t longest_corpus_ = 0, longest_query_ = 0, capacity_;
  double query_unit_ = 0.0, unit_ = 0.0;  // of a query's weights, and of the sums
  int64_t tall_, first_ = 0;              // queries of a panel, and the first of this one
  bool by_rows_ = false;
  std::vector<Side> sides_;
  std::vector<std::unique_ptr<Query>> queries_;
  std::vector<std::unique_ptr<Part>> parts_;  // by worker
};

}  // namespace finescope
