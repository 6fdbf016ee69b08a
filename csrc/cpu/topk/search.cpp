// A search by a screen: how rows of x, or panels of w, are split over workers, and which are in flight together.
#include <algorithm>
#include <cmath>

#include "cpu/topk/pack.h"
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

// Adds the candidates of row `row` of a part.
void add_row(const ScreenPlan& plan, const int32_t* column, int64_t n, const Buckets& buckets,
             Superblock::Part& part) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t id = plan.packed.row[column[i]];
    part.id.push_back(id);
    ++part.bucket[buckets.of(id)];
  }
}

bool usable(const ScreenPlan& plan) {
  return plan.usable && (plan.packed.finite || plan.problem.metric != Metric::encode);
}

class Search {
 public:
  Search(ScreenPlan* plan, const Workers& workers, Taker* taker)
      : plan_(*plan), p_(plan->problem), workers_(workers), taker_(*taker), buckets_(p_.N) {}

  void run() {
    for (int64_t first = 0; first < p_.B;) {
      // Superblocks of nearly one height, so that the last is not left with a few rows.
      const int64_t rest = p_.B - first, superblocks = (rest + kSuperblockRows - 1) / kSuperblockRows;
      first += superblock(first, (rest + superblocks - 1) / superblocks);
    }
  }

  // All rows at once; panels come from the packer, and what it packs is read here and nowhere else.
  void run(Packer* packer) {
    s_.first = 0;
    prepare(p_.B);
    split_panels(p_.B, packer);
    if (usable(plan_)) finish(p_.B);
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
      split_panels(n, nullptr);
    }
    finish(n);
    return n;
  }

  // Exact scores of the candidates of n rows.
  void finish(int64_t n) {
    // Waking other threads takes longer than what is left to do for a few rows.
    const Workers& hands = n > kFewRows ? workers_ : alone_;
    rescore(plan_, hands, &s_);
    taker_.take(hands, s_);
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
      n = Screening::raise(plan_, plan_.worst, rows, i, score, column, n, plan_.wanted, &tau);
      n = keep_certain(plan_, rows, i, score, column, n, tau);
    }
    finish_row(rows, i, row, tau);
    s_.count[row] = static_cast<int32_t>(n);
    add_row(plan_, column, n, buckets_, part);
  }

  // Few rows of x: workers share them and take panels of w in turn; what one finds raises the thresholds of
  // all.
  void split_panels(int64_t n, Packer* packer) {
    PackedRows& rows = shared_rows_;
    rows.pack(plan_, s_.first, n);
    std::vector<std::atomic<float>> shared(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) shared[i] = rows.tau[i];
    std::vector<Screening> screening(static_cast<size_t>(workers_.threads));
    for (Screening& s : screening) s.begin(plan_, rows, shared.data());
    const int64_t panels = plan_.packed.panels;
    const int64_t chunk = std::max<int64_t>(1, kChunkBytes / plan_.packed.panel_bytes);
    if (packer == nullptr) {
      for_each(workers_, (panels + chunk - 1) / chunk, [&](int64_t task, int worker) {
        screening[worker].run(task * chunk, std::min(panels, (task + 1) * chunk));
      });
    } else {
      pack_panels(*packer, screening);
    }
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

  // As split_panels, but panels are packed by the worker that reads them, into memory that its next ones take over.
  void pack_panels(Packer& packer, std::vector<Screening>& screening) {
    const int64_t bytes = plan_.packed.panel_bytes, blocks = packer.blocks();
    const int64_t together = std::max<int64_t>(1, kChunkBytes / (packer.first_panel(1) * bytes));
    std::vector<Array<char>> packed(screening.size());
    for_each(workers_, (blocks + together - 1) / together, [&](int64_t task, int worker) {
      const int64_t first = task * together, end = std::min(blocks, first + together);
      const int64_t begin_panel = packer.first_panel(first), end_panel = packer.first_panel(end);
      Array<char>& own = packed[worker];
      own.resize((end_panel - begin_panel) * bytes);
      for (int64_t block = first; block < end; ++block) {
        packer.pack(block, worker, own.data() + (packer.first_panel(block) - begin_panel) * bytes);
      }
      for (int64_t panel = begin_panel; panel < end_panel; ++panel) plan_.add(panel);
      screening[worker].run(begin_panel, end_panel, own.data());
    });
    packer.finish();
    plan_.close();
  }

  ScreenPlan& plan_;
  const TopkProblem& p_;
  const Workers& workers_;
  const Workers alone_{1, workers_.run};
  Taker& taker_;
  const Buckets buckets_;
  Superblock s_;
  PackedRows shared_rows_;
};

}  // namespace

Searched search(const TopkProblem& p, const Packed& packed, const Workers& workers, Taker* taker) {
  ScreenPlan plan(p, packed);
  if (usable(plan)) Search(&plan, workers, taker).run();
  return {packed.finite, plan.usable};
}

namespace {

// What can't be screened is found before any panel is read, or, of w, when all of them are.
bool ordinary(const double* bias, int64_t n) {
  return bias == nullptr || std::all_of(bias, bias + n, [](double b) { return std::fabs(b) < 0x1p60; });
}

}  // namespace

Searched pack_and_search(const TopkProblem& p, const PackRequest& request, const Workers& workers,
                         Taker* taker) {
  const int64_t bytes = packed_bytes(request);
  if (p.B <= kSharedRows && request.centre == nullptr && ordinary(p.bias, p.N)) {
    Packer packer(request, workers.threads, nullptr);
    ScreenPlan plan(p, packer.packed(), false);
    // All workers' candidates take no more memory than a packed matrix would.
    if (p.B * plan.capacity * 8 * workers.threads <= bytes) {
      Search(&plan, workers, taker).run(&packer);
      return {packer.packed().finite, plan.usable};
    }
  }
  const Block memory(bytes);
  return search(p, pack(request, workers, memory.get()), workers, taker);
}

}  // namespace finescope
