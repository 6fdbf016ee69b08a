// Exact top-k over sparse rows on the CPU: the engine behind sparse_cosine_topk.
//
//   turn     once for many calls: a window of rows into lists, one for each latent (pack.cpp)
//   screen   the lists, or rows as they are, against the queries in int16, with a proven bound (driver.cpp,
//            kernels.h)
//   rescore  what the screen let through, in float64 and the stated order (exact.cpp)
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/sparse_search/kernels.h"
#include "cpu/workers.h"

namespace finescope {

struct SparseSearchArgs {
  Csr queries, corpus;
  int64_t k;
  bool cosine;
  double floor;            // scores below it are not wanted
  const int64_t* exclude;  // [Q, E] corpus rows, -1 for none, or null
  int64_t E;
  const uint8_t* mask;  // [N] not 0 where a row may be returned, or null
  int64_t id_offset;
  bool unread;  // whether latents of the corpus may be out of range when exact scores are made
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

// Packs a corpus for many searches, in two steps: how large it will be, then into that much memory.
class SparsePacker {
 public:
  SparsePacker(const Csr& corpus, const Workers& workers);
  // A row with a latent out of range, or -1; then there is nothing to write.
  int64_t bad() const { return bad_; }
  // 0: lists would take too much room to pay.
  int64_t bytes() const { return bytes_; }
  void write(char* memory) const;

 private:
  const Csr corpus_;
  const Workers& workers_;
  const std::vector<int64_t> edges_;
  std::vector<int64_t> words_;
  int64_t bad_ = -1, bytes_ = 0;
};

// The k best rows for every query, then -inf and -1; some of them may lie below the floor. `packed` may be null:
// then rows are summed as they are. Returns a row of the corpus with a latent out of range, or -1; latents of
// queries are in range.
int64_t sparse_search(const SparseSearchArgs& args, const PackedSparse* packed, const Workers& workers,
                      const TopkOutput& out);

// What a search of a packed corpus sums: what takes less time, or always the same, which tests ask for.
enum class SparseWay : int { sooner, rows, lists };
void set_sparse_way(SparseWay way);

// out [Q, k]: the exact scores of queries and rows ids [Q, k], -inf for a row that may never be returned and for
// a negative id. Returns as sparse_search does.
int64_t sparse_pair_scores(const SparseSearchArgs& args, const int64_t* ids, const Workers& workers,
                           double* out);

}  // namespace finescope
