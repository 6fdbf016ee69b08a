// How many pairs of rows searches and encoders compared, of all calls of the process: what a screen is worth on the
// data it met. Added to once a task, never once a pair.
#pragma once

#include <atomic>
#include <cstdint>

namespace finescope {

struct PairCounts {
  std::atomic<int64_t> all{0};     // asked for
  std::atomic<int64_t> passed{0};  // that the first screen couldn't rule out; all, where there was none
  std::atomic<int64_t> exact{0};   // scored in float64; a row that is looked at again counts again
};
inline PairCounts pair_counts;

// Of n pairs that the only screen, or none, left.
inline void count_exact(int64_t n) {
  pair_counts.passed += n;
  pair_counts.exact += n;
}

}  // namespace finescope
