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

const SparseScreen& sparse_screen();

// Whether a latent occurs twice.
bool sparse_repeats(const uint16_t* latents, int64_t n);
bool sparse_repeats(const int32_t* latents, int64_t n);
bool sparse_repeats(const int64_t* latents, int64_t n);

struct SparseSearchArgs {
  Csr queries, corpus;
  int64_t k;
  bool cosine;
  double min_score;        // -inf for none
  const int64_t* exclude;  // [Q, E] corpus rows, -1 for none, or null
  int64_t E;
  const bool* mask;  // [N] true where a row may be returned, or null
  bool unread;       // whether latents of the corpus may be out of range when exact scores are made
};

// Thrown where exact scores meet a row with a latent out of range.
struct SparseRowError {
  int64_t row;
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
  void check(int64_t row) const;

  const SparseSearchArgs& a_;
  int64_t loaded_ = -1;
  double norm_ = 0.0;
  std::vector<double> dense_;
};

// The norm of a row: the root of the squares summed in ascending latents, float64.
double sparse_norm(const Csr& rows, int64_t row);

// Where the windows of a corpus begin, and where the last ends.
std::vector<int64_t> sparse_windows(const Csr& corpus);

// Turns rows over, one window after the other, in memory that is used again.
class SparseTurner {
 public:
  explicit SparseTurner(const Csr& corpus);
  // Count the entries of rows begin..end by latent, for the latents that `held` [F] names (all if null).
  // Returns the first row with a latent out of range, or -1.
  int64_t count(int64_t begin, int64_t end, const uint8_t* held);
  // Words that the lists of the rows counted last take.
  int64_t words() const { return words_; }
  // The rows counted last, turned over, in memory that stays until the next call.
  SparseWindow window();

 private:
  const Csr corpus_;
  int64_t begin_ = 0, end_ = 0, words_ = 0;
  std::vector<uint32_t> counts_, start_;
  std::vector<uint16_t> count_;
  std::vector<SparseCursor> cursor_;
  std::vector<float> values_, norm_;
  std::vector<int32_t> latents_;
  std::vector<int64_t> full_;  // latents with full lists
  std::unique_ptr<uint32_t[]> memory_;
  int64_t capacity_ = 0;
};

// A corpus turned over once for many searches, in one piece of memory that describes itself.
class PackedSparse {
 public:
  // Look at `size` bytes at `memory`. False if they do not hold this corpus.
  bool open(const char* memory, int64_t size, const Csr& corpus);
  // Lay out a corpus whose window w takes words[w]. Returns the bytes of all, or 0 if that would not pay;
  // when `memory` is not null, what describes it is written there.
  int64_t plan(const Csr& corpus, const std::vector<int64_t>& edges, const std::vector<int64_t>& words,
               char* memory);
  // Write window w of a planned corpus.
  void write(int64_t w, const SparseWindow& window, int64_t words, char* memory) const;

  int64_t windows() const { return windows_; }
  int64_t begin(int64_t w) const { return edges_[w]; }
  int64_t longest() const { return longest_; }
  SparseWindow window(int64_t w) const;

 private:
  const char* memory_ = nullptr;
  int64_t windows_ = 0, latents_ = 0, longest_ = 0;
  const int64_t *edges_ = nullptr, *places_ = nullptr;
};

// A search, in the order: for each panel of queries, begin(); scan() by every part, in parallel; finish() of
// every query, in parallel.
class SparseSearch {
 public:
  // `packed` may be null: then windows are turned over as they are met, and forgotten.
  SparseSearch(const SparseSearchArgs& args, const PackedSparse* packed);
  ~SparseSearch();

  int64_t panels() const { return (a_.queries.rows + kPanel - 1) / kPanel; }
  // Queries of a panel.
  int64_t first(int64_t panel) const { return panel * kPanel; }
  int64_t count(int64_t panel) const { return std::min<int64_t>(kPanel, a_.queries.rows - first(panel)); }
  int64_t windows() const { return packed_ ? packed_->windows() : static_cast<int64_t>(edges_.size()) - 1; }

  void begin(int64_t panel, int64_t parts);
  // Scan windows until none is left. Returns a row with a latent out of range, or -1.
  int64_t scan(int64_t part);
  // The results of query q (an index within the panel): at most k, score descending, then row ascending.
  std::vector<SparseCandidate> finish(int64_t q, ExactSparse& exact) const;

 private:
  static constexpr int64_t kPanel = 1024;
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
  struct Part;

  void prepare(Query& query, int64_t q);
  bool allowed(const Query& query, int64_t row) const;
  SparseTest test(const Query& query) const;
  int64_t scan_direct(Part& part, int64_t begin, int64_t end);
  void screen(Part& part, const SparseWindow& window, int64_t begin);
  void judge(Part& part, int64_t q, const SparseWindow& window, int64_t begin);
  void offer_unjudged(Part& part, const SparseWindow& window, int64_t begin);
  void offer(Part& part, int64_t q, const SparseCandidate& candidate);
  void shrink(Part& part, int64_t q);
  void take(Part& part, int64_t q, const SparseWindow& window, int64_t begin, int64_t hits);
  std::vector<SparseCandidate> zeros(const Query& query) const;

  const SparseSearchArgs a_;
  const PackedSparse* packed_;
  std::vector<int64_t> edges_;
  int64_t longest_corpus_ = 0, longest_query_ = 0, capacity_;
  double query_unit_ = 0.0, unit_ = 0.0;  // of a query's weights, and of the sums
  int64_t first_ = 0;
  bool direct_ = false;
  std::vector<uint8_t> held_;
  std::atomic<int64_t> next_{0};
  std::vector<std::unique_ptr<Query>> queries_;
  std::vector<std::unique_ptr<Part>> parts_;
};

}  // namespace finescope
