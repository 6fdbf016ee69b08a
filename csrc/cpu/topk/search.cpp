// A search by a screen: how rows of x, or panels of w, are split over workers, and which are in flight together.
#include <algorithm>
#include <cmath>

#include "cpu/topk/screen.h"

namespace finescope {
namespace {

// Rows in flight together, and the number of their candidates after which no more rows are added: it bounds
// memory, of which a candidate takes 32 bytes.
constexpr int64_t kSuperblockRows = 8192;
constexpr int64_t kCandidates = int64_t{3} << 18;
constexpr int64_t kBlockRows = 320;
// Their candidates before they are sifted.
constexpr int64_t kBufferBytes = int64_t{8} << 20;
// As many rows, and only their screen is worth splitting.
constexpr int64_t kFewRows = 8;
// Rows that workers share when w is split.
constexpr int64_t kSharedRows = 1024;
// Panels that a worker takes at a time then.
constexpr int64_t kChunkBytes = int64_t{1} << 20;

// Adds the candidates of row `row` of a part.
void add_row(const ScreenPlan& plan, const int32_t* column, int64_t n, const Buckets& buckets,
             Superblock::Part& part) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = plan.packed.row[column[i]];
    part.id.push_back(id);
    ++part.bucket[buckets.of(id)];
  }
}

class Search {
 public:
  Search(const ScreenPlan& plan, const Workers& workers, Taker* taker)
      : plan_(plan), p_(plan.problem), workers_(workers), taker_(*taker), buckets_(p_.N) {}

  void run() {
    for (int64_t first = 0; first < p_.B;) {
      // Superblocks of nearly one height, so that the last is not left with a few rows.
      const int64_t rest = p_.B - first, superblocks = (rest + kSuperblockRows - 1) / kSuperblockRows;
      first += superblock(first, (rest + superblocks - 1) / superblocks);
    }
  }

 private:
  // Rows first..first+n of x, or the first of them; returns how many.
  int64_t superblock(int64_t first, int64_t n) {
    s_.first = first;
    if (workers_.threads == 1 || n >= 56 * workers_.threads) {
      n = split_rows(n);
    } else {
      n = std::clamp<int64_t>(kBufferBytes / (plan_.capacity * 8), 1, std::min(n, kSharedRows));
      prepare(n);
      split_panels(n);
    }
    // Waking other threads takes longer than what is left to do for a few rows.
    const Workers& hands = n > kFewRows ? workers_ : alone_;
    rescore(plan_, hands, &s_);
    taker_.take(hands, s_);
    return n;
  }

  void prepare(int64_t n) {
    const size_t rows = static_cast<size_t>(n);
    s_.count.resize(rows);
    s_.tau.resize(rows);
    s_.raised.resize(rows);
    s_.bad.resize(rows);
    s_.norm64.resize(rows);
    s_.size.resize(rows);
  }

  // What is known about row i of packed rows, as row `row` of the superblock.
  void finish_row(const PackedRows& rows, int64_t i, int64_t row, float tau) {
    s_.tau[row] = rows.certain(i, rows.state[i] == PackedRows::kScan ? kClosed : tau);
    s_.raised[row] = tau > rows.tau[i];
    s_.bad[row] = rows.state[i] == PackedRows::kBad;
    s_.norm64[row] = rows.norm64[i];
    s_.size[row] = rows.size[i];
  }

  // Many rows of x: every worker has its own. Returns how many were screened before there were candidates
  // enough.
  int64_t split_rows(int64_t n) {
    const int64_t resident = plan_.kernels.rows[static_cast<int>(plan_.packed.kind)].resident;
    const int64_t fit = std::min(resident / (plan_.packed.units * 4), kBufferBytes / (plan_.capacity * 8));
    const int64_t tall = std::clamp<int64_t>(fit, 14, kBlockRows);
    const int64_t blocks = round_up((n + tall - 1) / tall, workers_.threads);
    prepare(n);
    s_.parts.resize(static_cast<size_t>(blocks));
    struct Scratch {
      PackedRows rows;
      Screening screening;
    };
    std::vector<Scratch> scratch(static_cast<size_t>(workers_.threads));
    std::atomic<int64_t> found{0};
    for_each(workers_, blocks, [&](int64_t block, int worker) {
      Superblock::Part& part = s_.parts[block];
      part.start(n * block / blocks, n * (block + 1) / blocks, buckets_.count);
      // Tasks are taken in order, so the parts that are left out are the last ones.
      part.screened = found.load() < kCandidates;
      if (!part.screened) return;
      PackedRows& rows = scratch[worker].rows;
      Screening& screening = scratch[worker].screening;
      rows.pack(plan_, s_.first + part.row, part.end - part.row);
      screening.begin(plan_, rows, nullptr);
      screening.run(0, plan_.packed.panels);
      for (int64_t i = 0; i < part.end - part.row; ++i) {
        finish_candidates(rows, i, part.row + i, screening.score(i), screening.column(i), screening.count(i),
                          screening.tau(i), part);
      }
      found += static_cast<int64_t>(part.id.size());
    });
    while (!s_.parts.back().screened) s_.parts.pop_back();
    prepare(s_.parts.back().end);
    return s_.parts.back().end;
  }

  void finish_candidates(const PackedRows& rows, int64_t i, int64_t row, float* score, int32_t* column,
                         int64_t n, float tau, Superblock::Part& part) {
    if (tau == kClosed) {
      n = 0;
    } else {
      n = Screening::raise(plan_, rows, i, score, column, n, plan_.wanted, &tau);
      n = keep_certain(plan_, rows, i, score, column, n, tau);
    }
    finish_row(rows, i, row, tau);
    s_.count[row] = static_cast<int32_t>(n);
    add_row(plan_, column, n, buckets_, part);
  }

  // Few rows of x: workers share them and take panels of w in turn; what one finds raises the thresholds of
  // all.
  void split_panels(int64_t n) {
    PackedRows& rows = shared_rows_;
    rows.pack(plan_, s_.first, n);
    std::vector<std::atomic<float>> shared(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) shared[i] = rows.tau[i];
    const int64_t chunk = std::max<int64_t>(1, kChunkBytes / plan_.packed.panel_bytes);
    const int64_t chunks = (plan_.packed.panels + chunk - 1) / chunk;
    std::vector<Screening> screening(static_cast<size_t>(workers_.threads));
    for (Screening& s : screening) s.begin(plan_, rows, shared.data());
    for_each(workers_, chunks, [&](int64_t task, int worker) {
      screening[worker].run(task * chunk, std::min(plan_.packed.panels, (task + 1) * chunk));
    });
    const int64_t blocks = std::min<int64_t>(n, 4 * workers_.threads);
    s_.parts.resize(static_cast<size_t>(blocks));
    for_each(n > kFewRows ? workers_ : alone_, blocks, [&](int64_t block, int) {
      Superblock::Part& part = s_.parts[block];
      part.start(n * block / blocks, n * (block + 1) / blocks, buckets_.count);
      std::vector<float> score;
      std::vector<int32_t> column;
      for (int64_t i = part.row; i < part.end; ++i) {
        score.clear();
        column.clear();
        for (Screening& s : screening) {
          score.insert(score.end(), s.score(i), s.score(i) + s.count(i));
          column.insert(column.end(), s.column(i), s.column(i) + s.count(i));
        }
        const int64_t found = static_cast<int64_t>(score.size());
        score.resize(score.size() + kSlack);
        column.resize(column.size() + kSlack);
        finish_candidates(rows, i, i, score.data(), column.data(), found, shared[i].load(), part);
      }
    });
  }

  const ScreenPlan& plan_;
  const TopkProblem& p_;
  const Workers& workers_;
  const Workers alone_{1, workers_.run};
  Taker& taker_;
  const Buckets buckets_;
  Superblock s_;
  PackedRows shared_rows_;
};

}  // namespace

void search(const ScreenPlan& plan, const Workers& workers, Taker* taker) {
  Search(plan, workers, taker).run();
}

}  // namespace finescope
