// The driver of topk: which way a problem is solved, and the choice of the best.
#include <algorithm>
#include <cmath>
#include <mutex>

#include "cpu/counts.h"
#include "cpu/subnormals.h"
#include "cpu/topk/screen.h"
#include "cpu/topk/topk.h"

namespace finescope {
namespace {

// Takes the k best of the rows that are certain; the others have to be searched `again`.
class Selector final : public Taker {
 public:
  Selector(const TopkProblem& p, const TopkOutput& out) : p_(p), out_(out) {}

  void take(const Workers& workers, const Superblock& s) override {
    std::vector<std::vector<Hit>> hits(static_cast<size_t>(workers.threads));
    for_each(workers, static_cast<int64_t>(s.parts.size()), [&](int64_t task, int worker) {
      const Superblock::Part& part = s.parts[task];
      for (int64_t row = part.row; row < part.end; ++row) take_row(s, part, row, hits[worker]);
    });
  }

  std::vector<int64_t> again;

 private:
  void take_row(const Superblock& s, const Superblock::Part& part, int64_t row, std::vector<Hit>& hits) {
    const int64_t b = s.first + row;
    if (s.bad[row]) return write_bad_row(p_, out_, b);
    hits.clear();
    int64_t reached = 0;
    for (int64_t slot = s.begin[row]; slot < s.begin[row + 1]; ++slot) {
      const Hit hit{s.exact[slot], part.id[slot - part.slot]};
      if (!(hit.score > p_.floor) || (p_.E > 0 && excluded(p_, b, hit.id))) continue;
      reached += hit.score >= s.tau[row];
      hits.push_back(hit);
    }
    // Everything with an exact score of tau or more is among the hits. k of them reach it: nothing is missing.
    if (s.tau[row] == kClosed || (s.raised[row] && reached < p_.k)) {
      std::lock_guard<std::mutex> guard(lock_);
      again.push_back(b);
      return;
    }
    write_row(p_, out_, b, hits.data(), static_cast<int64_t>(hits.size()));
  }

  const TopkProblem& p_;
  const TopkOutput& out_;
  std::mutex lock_;
};

// Rows of x without NaN and infinity. False if (encode only) w is not finite.
bool direct_or_scan(const TopkProblem& p, const std::vector<int64_t>& rows, const Workers& workers,
                    const TopkOutput& out) {
  std::vector<int64_t> again;
  direct(p, rows.data(), static_cast<int64_t>(rows.size()), workers, out, &again);
  if (again.empty()) return true;
  std::sort(again.begin(), again.end());
  return scan(p, again.data(), static_cast<int64_t>(again.size()), workers, out);
}

// Rows of x without NaN and infinity; the others are written.
std::vector<int64_t> good_rows(const TopkProblem& p, const Workers& workers, const TopkOutput& out) {
  const std::vector<uint8_t> good = finite_rows(p.x, p.B, p.d, workers);
  std::vector<int64_t> rows;
  for (int64_t b = 0; b < p.B; ++b) {
    if (good[b]) {
      rows.push_back(b);
    } else {
      write_bad_row(p, out, b);
    }
  }
  return rows;
}

void direct_all(const TopkProblem& p, const Workers& workers, const TopkOutput& out) {
  if (direct_or_scan(p, good_rows(p, workers, out), workers, out)) return;
  for (int64_t b = 0; b < p.B; ++b) write_bad_row(p, out, b);
}

void scan_all(const TopkProblem& p, const Workers& workers, const TopkOutput& out) {
  const std::vector<int64_t> rows = good_rows(p, workers, out);
  if (scan(p, rows.data(), static_cast<int64_t>(rows.size()), workers, out)) return;
  for (int64_t b = 0; b < p.B; ++b) write_bad_row(p, out, b);
}

// Whether a screen can be of use: not for float64, and not where most columns are candidates anyway.
bool worth_screening(const TopkProblem& p) {
  return p.x.dtype != DType::f64 && p.w.dtype != DType::f64 && 8 * (p.k + p.E) + 1024 <= p.N;
}

// As fast as memory without a screen.
constexpr int64_t kScanRows = 2;

}  // namespace

void topk(const TopkProblem& p, const Packed* packed, ScreenChoice choice, const Workers& workers,
          const TopkOutput& out) {
  if (p.B == 0 || p.k == 0) return;
  pair_counts.all += p.B * p.N;
  const KeepSubnormals keep;
  if (p.bias != nullptr) {
    for (int64_t f = 0; f < p.N; ++f) {
      if (std::isfinite(p.bias[f])) continue;
      for (int64_t b = 0; b < p.B; ++b) write_bad_row(p, out, b);
      return;
    }
  }
  if (!worth_screening(p) || choice == ScreenChoice::none) return scan_all(p, workers, out);
  // Packed for another instruction set: pack again.
  if (packed != nullptr && !fits(*packed)) packed = nullptr, choice = ScreenChoice::automatic;
  Selector selector(p, out);
  Searched found;
  if (packed != nullptr) {
    found = search(p, *packed, workers, &selector);
  } else {
    const bool few = p.B < topk_kernels().pack_rows;
    if (few && choice == ScreenChoice::automatic) {
      return p.B < kScanRows ? scan_all(p, workers, out) : direct_all(p, workers, out);
    }
    if (!can_pack({p.w, p.N, p.d, p.metric, ScreenKind::f32})) return direct_all(p, workers, out);
    const double share = static_cast<double>(p.k + p.E) / static_cast<double>(p.N);
    const std::vector<float> mean = common_mean(p.w, p.N, p.d, p.metric);
    const float* centre = mean.empty() ? nullptr : mean.data();
    const ScreenKind kind =
        best_screen(choice, {p.x, p.w, p.B, p.N, p.d, p.metric, p.bias, share, centre}, workers);
    if (few && kind == ScreenKind::f32) return direct_all(p, workers, out);
    found = pack_and_search(p, {p.w, p.N, p.d, p.metric, kind, centre}, workers, &selector);
  }
  if (p.metric == Metric::encode && !found.finite) {
    for (int64_t b = 0; b < p.B; ++b) write_bad_row(p, out, b);
    return;
  }
  if (!found.usable) return direct_all(p, workers, out);
  direct_or_scan(p, selector.again, workers, out);
}

}  // namespace finescope
