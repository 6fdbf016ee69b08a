// Exact top-k by inner product on the CPU: the engine behind topk_encode and cosine_topk.
//
//   choose   the precision of the screen, by a sample (choose.cpp)
//   centre   what all rows have in common is taken out, where it is much (centre.h)
//   pack     once per matrix w: rows to low precision (quantize.cpp), in panels, with their measured errors (pack.h);
//            for one call with few rows of x just before a panel is screened, and not kept
//   screen   x against the panels: candidates that may be among the k best, and a threshold (screen.cpp)
//   rescore  candidates gathered by row of w, in float64 and the fixed order (rescore.cpp)
//   select   the k best exact scores; the threshold is checked against them (driver.cpp)
//   exceed   instead: all scores above thresholds that are known in advance (exceed.h)
//   direct   a float32 screen of w as it is: for few rows, and for what a packed screen gives up on (direct.cpp)
//   scan     every score exactly: for one row, for what no screen can separate, and for float64 (scan.cpp)
//
// The threshold of a packed screen is a guess that later events confirm or refute: everything with an exact
// score of at least `tau` was kept, so if the k-th best exact score among the candidates reaches tau, nothing
// is missing. A row for which it does not is screened directly.
#pragma once

#include <cstdint>

#include "cpu/memory.h"
#include "cpu/topk/kernels.h"
#include "cpu/workers.h"

namespace finescope {

// A matrix w [n, d] packed for one kind of screen: views into one piece of memory that describes itself, so
// that it can be kept by a tensor, written to a file and mapped from there.
struct Packed {
  ScreenKind kind;
  Metric metric;  // cosine: rows were divided by their norms
  bool rotated;
  bool finite;  // no NaN and no infinity anywhere
  bool tame;    // magnitudes in the range where a screen's float32 arithmetic neither over- nor underflows
  int nr;
  int32_t offset;  // added to whole numbers
  int64_t n, d;
  int64_t depth;  // d, or its next multiple of 64 if rows were rotated
  int64_t units, panels, panel_bytes;
  float max_norm, max_err;
  const char* data;
  const float *scale, *inv_scale, *norm, *err;  // by panel, as in ScreenPanels
  const uint32_t* valid;                        // by panel: columns that hold a row without NaN and infinity
  const int32_t* row;                           // by column: its row of w
  const double* norm64;                         // by row: the fixed-order norm; null unless cosine
  const float* centre;                          // [d] taken out of every row before all of this; or null
  const float* along;                           // by column: <centre, its row - centre>; null without centre
};

struct TopkProblem {
  Matrix x, w;
  int64_t B, N, d, k;
  Metric metric;
  const double* bias;      // [N], or null
  double floor;            // scores at or below it are not wanted
  const int64_t* exclude;  // [B, E] rows of w that are not wanted for a row of x (negative: none), or null
  int64_t E;
  const uint8_t* mask;  // [N], 0: never returned; or null
  int64_t id_offset;
  // What is wanted is everything above the floor, however many (k is what is expected of a row), and scores are
  // dots: the bias only moves the floor.
  bool bare = false;
};

bool screen_available(ScreenKind kind);
// What a choice of screen is made for: pairs of which some are sampled.
struct PairSample {
  Matrix x, w;
  int64_t B, N, d;
  Metric metric;
  const double* bias;             // [N], or null
  double share;                   // of the rows of w that are asked for
  const float* centre = nullptr;  // common_mean of w, or null
};
// What an int8 screen would let through of these pairs, and what it should: those beyond the share that is asked
// for, or, if `above`, those whose dot and bias are above 0.
struct Survivors {
  double screened, wanted;
};
Survivors survivors(const PairSample& sample, bool above, const Workers& workers);
// The screen that a choice stands for, or, left to the engine, the best one for these pairs, among those that
// the active instruction set has.
ScreenKind best_screen(ScreenChoice choice, const PairSample& sample, const Workers& workers);

// What to pack.
struct PackRequest {
  Matrix w;
  int64_t n, d;
  Metric metric;
  ScreenKind kind;
  const float* centre = nullptr;  // common_mean of w, or null
};
// Whether it can be packed at all: float64 rows, and more rows or columns than the screens count, cannot.
bool can_pack(const PackRequest& request);
int64_t packed_bytes(const PackRequest& request);
// Packs into that much memory.
Packed pack(const PackRequest& request, const Workers& workers, char* memory);
// Whether the active instruction set screens what was packed so.
bool fits(const Packed& packed);
// The packed matrix in `bytes` of memory; false if that holds none, or one of other sizes.
bool open_packed(const char* memory, int64_t bytes, int64_t n, int64_t d, Metric metric, Packed* out);

// `packed` may be null; then `choice` decides whether to pack for this call. It must fit problem.w and metric.
// encode: a row that has fewer positive scores is filled with zeros at the lowest other latents. Search: with
// -inf and -1.
void topk(const TopkProblem& problem, const Packed* packed, ScreenChoice choice, const Workers& workers,
          const TopkOutput& out);

}  // namespace finescope
