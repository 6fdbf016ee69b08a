// What an instruction set provides to the sparse search: a screen in int16, over rows that were turned over
// and over rows as they are. The bounds it has to stay within are derived in driver.cpp.
#pragma once

#include <cstdint>

#include "../../kernels.h"  // the contract; "kernels.h" would be this file
#include "cpu/isa.h"

namespace finescope {

// A window of corpus rows turned over, to be screened: for each latent the rows that hold it. Values are
// those of the row divided by its norm, in units of 1 / kSparseUnit, rounded to int16.
constexpr int kSparseUnit = 32767;
constexpr int64_t kSparseWindow = 32768;  // most rows of a window
// Longer rows are not judged: roundings could overflow the sums.
constexpr int64_t kSparseMostEntries = 40000;
constexpr uint16_t kSparseFull = 0xffff;
struct SparseWindow {
  const uint32_t* start;  // [F] the word at which a latent's list begins
  const uint16_t* count;  // [F] its entries, or kSparseFull
  // Entries: row | value << 16, rows ascending. A full list: a value for every row, two to a word, zeros
  // where there is none, whole registers of 16.
  const uint32_t* words;
  const float* norm;  // [rows] NaN for a row that the lists cannot stand for; its values are 0 in them
  int64_t rows;
};

struct SparseFillArgs {
  Csr corpus;
  uint32_t* cursor;  // [F] where the next entry of a latent is to be written
  uint32_t* words;
  float* norm;
  int32_t* latents;  // scratch for one row: its latents and values, rounded up to 16 entries
  float* values;
};

// Queries side by side, to be summed over rows as they are.
constexpr int kSparsePanelWidths[] = {16, 32, 64};
constexpr int kPlaceUnit = 4;
struct SparsePanel {
  int64_t width;  // one of these: queries, and columns of zeros
  // [F] Where in `weights` the row for a latent begins, in units of 4 weights, 8 bytes, by which processors
  // address; 0, a row of zeros, where no query has it.
  const int32_t* place;
  const int16_t* weights;  // [places, width] as in SparseTerm
};
struct SparseRowsArgs {
  Csr corpus;
  SparsePanel panel;
  int16_t* sums;  // [rows, width] as SparseScreen::sum makes them
  float* norm;    // [rows] as in a window; sums are 0 where it is NaN
  // Scratch for some rows: as many entries as the longest has and 32, or more.
  int64_t room;
  int32_t* places;
  float* values;
  uint32_t* words;
};

// One query, and rows as they are.
struct SparseOneArgs {
  Csr corpus;
  const float* query;  // [F] its values, in units of the sums
  int16_t* sums;       // [rows] of query and row / |row|, rounded once
  float* norm;         // [rows] as in a window
};

// A latent of a query and its value, in units that the caller chooses.
struct SparseTerm {
  int32_t latent;
  int16_t weight;
};

// What a sum has to reach: cosine: sum >= least; otherwise (sum + error) * norm >= bound.
struct SparseTest {
  bool cosine;
  int32_t least;
  float error, bound;
};
struct SparseHit {
  int32_t row, sum;
};
// The same for each query of a panel.
struct SparsePanelTest {
  int64_t width;
  bool cosine;
  const int16_t* least;        // [width]
  const float *error, *bound;  // [width]
};
struct SparsePanelHit {
  int32_t row;
  int16_t query, sum;
};

// The screen of sparse searches for one instruction set.
struct SparseScreen {
  // Count how many of rows begin..end hold each latent, onto counts [F]. Returns the first row with a latent
  // outside 0..F-1, or -1.
  int64_t (*count)(const Csr& corpus, int64_t begin, int64_t end, uint32_t* counts);
  // Write the entries of rows begin..end, which `count` has found to be in range, as lists without full ones.
  void (*fill)(const SparseFillArgs&, int64_t begin, int64_t end);
  // Sum rows begin..end for a panel of queries. Returns the first row with a latent outside 0..F-1, or -1.
  int64_t (*rows)(const SparseRowsArgs&, int64_t begin, int64_t end);
  // The same for one query.
  int64_t (*one)(const SparseOneArgs&, int64_t begin, int64_t end);
  // Which of the sums [rows, width] pass the test, row by row. Returns their number; one more may be written.
  int64_t (*reach)(const int16_t* sums, const float* norm, int64_t rows, const SparsePanelTest&,
                   SparsePanelHit* hits);
  // sums[row] = sum over the terms of (value * weight + 2^14) >> 15. `sums` has whole registers of 16.
  void (*sum)(const SparseWindow&, const SparseTerm* terms, int64_t n, int16_t* sums);
  // The rows that pass the test, ascending. Returns their number.
  int64_t (*hits)(const SparseWindow&, const int16_t* sums, const SparseTest&, SparseHit* hits);
};

// Whether a latent occurs twice.
bool sparse_repeats(const uint16_t* latents, int64_t n);
bool sparse_repeats(const int32_t* latents, int64_t n);
bool sparse_repeats(const int64_t* latents, int64_t n);

// The table of the active instruction set.
const SparseScreen& sparse_screen();

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

}  // namespace finescope
