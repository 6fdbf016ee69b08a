// Screening a block of rows of x: packed rows, thresholds and candidates.
#pragma once

#include <atomic>
#include <vector>

#include "cpu/topk/centre.h"
#include "cpu/topk/internal.h"
#include "cpu/topk/quantize.h"

namespace finescope {

class Packer;

// Panels that a worker takes at a time where workers share the rows of x; these stay in its cache.
inline constexpr int64_t kChunkBytes = int64_t{1} << 20;

// The largest of the panels' bounds, over some of them.
struct Worst {
  float norm = 0.0f, err = 0.0f, slack = 0.0f;

  void add(const ScreenPanels& w, int64_t panel) {
    norm = std::max(norm, w.norm[panel]);
    err = std::max(err, w.err[panel]);
    slack = std::max(slack, w.slack[panel]);
  }
};

// What the screens of one call share.
struct ScreenPlan {
  const TopkProblem& problem;
  const Packed& packed;
  const TopkKernels& kernels;
  Centring centring;
  RowQuantizer quantizer;  // of rows of x
  ScreenPanels panels;
  std::vector<float> bias, slack;
  std::vector<uint32_t> valid;
  Worst worst;  // of all panels
  float max_bias = 0.0f;
  float max_size = 0.0f;  // >= |w| of every row, as it was before anything was taken out
  bool usable = true;     // the bias and w are in the range of the screen's arithmetic
  float open;             // threshold to start from, where nothing is taken out
  int64_t wanted;         // candidates that a threshold must leave: k, and one for each excluded row
  int64_t capacity;       // of candidates for each row

  // Of a matrix that is packed; without `whole`, of one whose panels are added as they are packed, after which the
  // plan is closed. Such rows must have no centre.
  ScreenPlan(const TopkProblem& problem, const Packed& packed, bool whole = true);
  // Points into itself.
  ScreenPlan(const ScreenPlan&) = delete;
  ScreenPlan& operator=(const ScreenPlan&) = delete;

  // Different workers may add different panels.
  void add(int64_t panel);
  void close();
};

// Rows of x in units, as a screen reads them: in groups of nearly one height, run by run of units.
struct RowGroups {
  std::vector<uint32_t> data;
  std::vector<int64_t> offset;  // of each group, in bytes
  std::vector<int32_t> row;     // [groups + 1] first row of each group

  RowGroups() = default;
  RowGroups(const TopkKernels& kernels, ScreenKind kind, int64_t units, int64_t rows);
  // Rows come in order.
  void put(int64_t i, const uint32_t* units);
  // Groups that stay in the second-level cache together.
  int64_t resident() const { return resident_; }

 private:
  int64_t chunk_ = 0, units_ = 0, run_ = 1, length_ = 0, group_ = 0;
  int32_t offset_ = 0;
  int64_t resident_ = 1;
};

// Low-precision rows of x; read by all workers when they split w.
struct PackedRows {
  RowGroups groups;
  std::vector<float> scale, inv_scale, norm, err, tau;
  std::vector<int32_t> start;
  std::vector<double> norm64;
  std::vector<float> size;  // >= |x|
  // Screened scores are smaller than the scores they stand for by `shift`, up to a rounding of `rounding`.
  std::vector<double> shift, rounding;
  std::vector<uint8_t> state;  // kScreen, kBad or kScan

  enum : uint8_t { kScreen, kBad, kScan };

  // Rows first..first+n of x.
  void pack(const ScreenPlan& plan, int64_t first, int64_t n);
  int64_t rows() const { return static_cast<int64_t>(state.size()); }
  // What everything that a threshold may have dropped lies below.
  double certain(int64_t i, float threshold) const;

 private:
  float lowest(const ScreenPlan& plan, int64_t i) const;
};

// The candidates of packed rows in some range of panels. `shared`, if given, holds the highest threshold that
// any worker has found for each row.
class Screening {
 public:
  void begin(const ScreenPlan& plan, const PackedRows& rows, std::atomic<float>* shared);
  // `packed`: the first of these panels, if the plan doesn't hold them.
  void run(int64_t begin_panel, int64_t end_panel, const char* packed = nullptr);

  float tau(int64_t row) const { return tau_[row]; }
  int64_t count(int64_t row) const { return count_[row]; }
  float* score(int64_t row) { return score_ + row * capacity_; }
  int32_t* column(int64_t row) { return column_ + row * capacity_; }

  // Raises the threshold of a row to where `wanted`, or up to `most`, of n candidates are above it, if there
  // are so many, and drops those that cannot reach it. Returns how many are left.
  static int64_t raise(const ScreenPlan& plan, const Worst& worst, const PackedRows& rows, int64_t row,
                       float* score, int32_t* column, int64_t n, int64_t most, float* tau);

 private:
  static void full(void* self, int32_t row);

  const ScreenPlan* plan_ = nullptr;
  const PackedRows* rows_ = nullptr;
  std::atomic<float>* shared_ = nullptr;
  Worst worst_;  // of the panels so far
  int64_t capacity_ = 0, reserved_ = 0;
  Block memory_;
  float* score_ = nullptr;
  int32_t* column_ = nullptr;
  std::vector<float> tau_;
  std::vector<int32_t> count_, limit_;
};

// The largest error of a row's screened scores, over some panels.
inline float largest_bound(const Worst& worst, const PackedRows& rows, int64_t row) {
  const float bound = rows.err[row] * worst.norm + rows.norm[row] * worst.err + worst.slack;
  return bound * (1.0f + 0x1p-20f);
}

// Drops the candidates whose own bound does not reach tau.
int64_t keep_certain(const ScreenPlan& plan, const PackedRows& rows, int64_t row, float* score,
                     int32_t* column, int64_t n, float tau);

// What becomes of rows whose candidates have exact scores.
class Taker {
 public:
  virtual ~Taker() = default;
  virtual void take(const Workers& workers, const Superblock& block) = 0;
};

// How a search ended. Where w isn't usable for a screen, or a row of an encoder not finite, nothing is handed over.
struct Searched {
  bool finite, usable;
};
// Screens all rows of x, scores their candidates, and hands them over, some thousand rows at a time.
Searched search(const TopkProblem& problem, const Packed& packed, const Workers& workers, Taker* taker);
// The same, packing w first; for few rows of x while it is read, so that what is packed never leaves the cache.
Searched pack_and_search(const TopkProblem& problem, const PackRequest& request, const Workers& workers,
                         Taker* taker);

// Fills `exact` from the parts: -inf where a score is certainly below the threshold of its row.
void rescore(const ScreenPlan& plan, const Workers& workers, Superblock* s);

}  // namespace finescope
