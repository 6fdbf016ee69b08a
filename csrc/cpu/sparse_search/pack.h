// Rows turned over, in memory that is used again.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/sparse_search/kernels.h"
#include "cpu/sparse_search/search.h"

namespace finescope {

// Where the windows of a corpus begin, and where the last ends.
std::vector<int64_t> sparse_windows(const Csr& corpus);

// Turns rows over, one window after the other.
class SparseTurner {
 public:
  explicit SparseTurner(const Csr& corpus);
  // Count the entries of rows begin..end by latent. Returns the first row with a latent out of range, or -1.
  int64_t count(int64_t begin, int64_t end);
  // Words that the lists of the rows counted last take.
  int64_t words() const { return words_; }
  // The rows counted last, turned over, in memory that stays until the next call.
  SparseWindow window();

 private:
  const Csr corpus_;
  int64_t begin_ = 0, end_ = 0, words_ = 0;
  std::vector<uint32_t> counts_, start_;
  std::vector<uint16_t> count_;
  std::vector<uint32_t> cursor_;
  std::vector<float> values_, norm_;
  std::vector<int32_t> latents_;
  std::vector<int64_t> full_;  // latents with full lists
  std::unique_ptr<uint32_t[]> memory_;
  int64_t capacity_ = 0;
};

}  // namespace finescope
