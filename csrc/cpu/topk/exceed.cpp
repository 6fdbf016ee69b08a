// The driver of exceed, and the rows it gathers.
#include "cpu/topk/exceed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/counts.h"
#include "cpu/subnormals.h"
#include "cpu/topk/screen.h"

namespace finescope {

void ExceedRows::Piece::add(const ExceedProblem& p, int64_t b, std::vector<Hit>& hits) {
  const auto by_latent = [](const Hit& l, const Hit& r) { return l.id < r.id; };
  if (!std::is_sorted(hits.begin(), hits.end(), by_latent)) std::sort(hits.begin(), hits.end(), by_latent);
  row.push_back(b);
  count.push_back(static_cast<int32_t>(hits.size()));
  for (const Hit& hit : hits) {
    latent.push_back(static_cast<int32_t>(hit.id));
    const double v = p.value(hit.score, hit.id);
    p.f64 ? wide.push_back(v) : narrow.push_back(static_cast<float>(v));
  }
}

void ExceedRows::Piece::add_bad(const ExceedProblem& p, int64_t b) {
  row.push_back(b);
  count.push_back(p.N > 0);
  if (p.N == 0) return;
  latent.push_back(0);
  p.f64 ? wide.push_back(std::numeric_limits<double>::quiet_NaN())
        : narrow.push_back(std::numeric_limits<float>::quiet_NaN());
}

void ExceedRows::Piece::reserve(size_t rows, size_t entries, bool f64) {
  row.reserve(rows), count.reserve(rows), latent.reserve(entries);
  f64 ? wide.reserve(entries) : narrow.reserve(entries);
}

void ExceedRows::take(Piece&& piece) {
  std::lock_guard<std::mutex> guard(lock_);
  entries_ += static_cast<int64_t>(piece.latent.size());
  pieces_.push_back(std::move(piece));
}

void ExceedRows::spoil(const ExceedProblem& p) {
  pieces_.clear();
  entries_ = 0;
  Piece all;
  for (int64_t b = 0; b < p.B; ++b) all.add_bad(p, b);
  take(std::move(all));
}

void ExceedRows::write(const ExceedProblem& p, int64_t* indptr, int32_t* latent, void* value) {
  std::fill(indptr, indptr + p.B + 1, 0);
  for (const Piece& piece : pieces_) {
    for (size_t i = 0; i < piece.row.size(); ++i) indptr[piece.row[i] + 1] = piece.count[i];
  }
  for (int64_t b = 0; b < p.B; ++b) indptr[b + 1] += indptr[b];
  for (Piece& whole : pieces_) {
    const Piece piece = std::move(whole);
    int64_t at = 0;
    for (size_t i = 0; i < piece.row.size(); ++i) {
      const int64_t to = indptr[piece.row[i]], n = piece.count[i];
      if (n == 0) continue;
      std::memcpy(latent + to, piece.latent.data() + at, n * sizeof(int32_t));
      if (p.f64) {
        std::memcpy(static_cast<double*>(value) + to, piece.wide.data() + at, n * sizeof(double));
      } else {
        std::memcpy(static_cast<float*>(value) + to, piece.narrow.data() + at, n * sizeof(float));
      }
      at += n;
    }
  }
}

namespace {

// Where more pairs than this share exceed, exact dots are the work, and a screen is of no use.
constexpr double kCrowded = 0.125;
// Candidates that are expected of a row at most: a row that has more than four times as many is looked at without
// a screen.
constexpr int64_t kMostExpected = 2048;
// As few rows are not worth looking at a sample first, nor is a narrow w worth packing.
constexpr int64_t kFewRows = 64, kFewLatents = 256;
// As fast as memory without a screen.
constexpr int64_t kScanRows = 2;

// Takes the rows that the screen has separated; the others are for another look.
class Gatherer final : public Taker {
 public:
  Gatherer(const ExceedProblem& p, ExceedRows* out) : p_(p), out_(*out) {}

  void take(const Workers& workers, const Superblock& s) override {
    for_each(workers, static_cast<int64_t>(s.parts.size()), [&](int64_t task, int) {
      const Superblock::Part& part = s.parts[task];
      ExceedRows::Piece piece;
      piece.reserve(static_cast<size_t>(part.end - part.row),
                    static_cast<size_t>(s.begin[part.end] - s.begin[part.row]), p_.f64);
      std::vector<Hit> hits;
      std::vector<int64_t> crowded;
      for (int64_t row = part.row; row < part.end; ++row) {
        const int64_t b = s.first + row;
        if (s.bad[row]) {
          piece.add_bad(p_, b);
        } else if (s.tau[row] == kClosed) {
          crowded.push_back(b);
        } else {
          hits.clear();
          for (int64_t slot = s.begin[row]; slot < s.begin[row + 1]; ++slot) {
            const int64_t id = part.id[slot - part.slot];
            if (p_.exceeds(s.exact[slot], id)) hits.push_back({s.exact[slot], id});
          }
          piece.add(p_, b, hits);
        }
      }
      out_.take(std::move(piece));
      std::lock_guard<std::mutex> guard(lock_);
      again.insert(again.end(), crowded.begin(), crowded.end());
    });
  }

  std::vector<int64_t> again;

 private:
  const ExceedProblem& p_;
  ExceedRows& out_;
  std::mutex lock_;
};

// The problem as a screen sees it.
struct Screened {
  std::vector<double> bias;    // less the threshold
  std::vector<uint8_t> mask;   // 0: nothing exceeds the threshold
  std::vector<double> sample;  // the bias, NaN where nothing exceeds
  TopkProblem problem{};
  bool usable = true;  // thresholds are finite, or beyond everything

  explicit Screened(const ExceedProblem& p)
      : bias(static_cast<size_t>(p.N)), mask(static_cast<size_t>(p.N), 1), sample(static_cast<size_t>(p.N)) {
    for (int64_t f = 0; f < p.N; ++f) {
      if (p.threshold[f] < std::numeric_limits<double>::infinity()) {
        bias[f] = sample[f] = shifted_bias(p, f);
        usable = usable && std::isfinite(bias[f]);
      } else {
        mask[f] = 0;
        sample[f] = std::numeric_limits<double>::quiet_NaN();
      }
    }
    problem.x = p.x, problem.w = p.w;
    problem.B = p.B, problem.N = p.N, problem.d = p.d;
    problem.metric = Metric::encode;
    problem.bias = bias.data();
    problem.mask = mask.data();
    problem.bare = true;
  }
};

// Finite rows of x without a packed screen; the others are bad.
void without_packing(const ExceedProblem& p, bool screen, const Workers& workers, ExceedRows* out) {
  const std::vector<uint8_t> good = finite_rows(p.x, p.B, p.d, workers);
  std::vector<int64_t> rows;
  ExceedRows::Piece bad;
  for (int64_t b = 0; b < p.B; ++b) good[b] ? rows.push_back(b) : bad.add_bad(p, b);
  out->take(std::move(bad));
  const int64_t n = static_cast<int64_t>(rows.size());
  if (!exceed_directly(p, rows.data(), n, screen, workers, out)) out->spoil(p);
}

// The screen for these pairs where it is left to the engine.
ScreenKind kind_for(const Survivors& passed, const PairSample& sample, const Workers& workers) {
  const ScreenKind wide = best_screen(ScreenChoice::bf16, sample, workers);
  if (!screen_available(ScreenKind::int8)) return wide;
  const bool loose = passed.screened - passed.wanted > topk_kernels().most_survivors;
  return loose && wide != ScreenKind::f32 ? wide : ScreenKind::int8;
}

}  // namespace

void exceed(const ExceedProblem& p, const Packed* packed, ScreenChoice choice, const Workers& workers,
            ExceedRows* out) {
  if (p.B == 0 || p.N == 0) return;
  pair_counts.all += p.B * p.N;
  const KeepSubnormals keep;
  for (int64_t f = 0; p.bias != nullptr && f < p.N; ++f) {
    if (!std::isfinite(p.bias[f])) return out->spoil(p);
  }
  const bool wide = p.x.dtype == DType::f64 || p.w.dtype == DType::f64;
  const bool few = packed == nullptr && p.B < topk_kernels().pack_rows && choice == ScreenChoice::automatic;
  if (wide || choice == ScreenChoice::none || (few && p.B < kScanRows))
    return without_packing(p, false, workers, out);
  Screened screened(p);
  if (few || p.N < kFewLatents || !screened.usable ||
      !can_pack({p.w, p.N, p.d, Metric::encode, ScreenKind::f32})) {
    return without_packing(p, true, workers, out);
  }
  if (packed != nullptr && !packed->finite) return out->spoil(p);
  std::vector<float> mean;
  const float* centre = packed != nullptr ? packed->centre : nullptr;
  if (packed == nullptr) {
    mean = common_mean(p.w, p.N, p.d, Metric::encode);
    centre = mean.empty() ? nullptr : mean.data();
  }
  const PairSample sample{p.x, p.w, p.B, p.N, p.d, Metric::encode, screened.sample.data(), 0.0, centre};
  Survivors passed{0.0, 0.0};
  screened.problem.k = kMostExpected;
  if (p.B >= kFewRows && screen_available(ScreenKind::int8)) {
    passed = survivors(sample, true, workers);
    if (passed.wanted > kCrowded) return without_packing(p, true, workers, out);
    const double expected = std::ceil(passed.screened * static_cast<double>(p.N));
    screened.problem.k = static_cast<int64_t>(std::min(expected, static_cast<double>(kMostExpected)));
  }
  Gatherer gatherer(p, out);
  Searched found;
  // One that was packed for another instruction set is packed again.
  if (packed == nullptr || !fits(*packed)) {
    const ScreenKind kind = choice == ScreenChoice::automatic ? kind_for(passed, sample, workers)
                                                              : best_screen(choice, sample, workers);
    found =
        pack_and_search(screened.problem, {p.w, p.N, p.d, Metric::encode, kind, centre}, workers, &gatherer);
  } else {
    found = search(screened.problem, *packed, workers, &gatherer);
  }
  if (!found.finite) return out->spoil(p);
  if (!found.usable) return without_packing(p, true, workers, out);
  std::sort(gatherer.again.begin(), gatherer.again.end());
  const int64_t n = static_cast<int64_t>(gatherer.again.size());
  // What is in w has been looked at when it was packed.
  exceed_directly(p, gatherer.again.data(), n, true, workers, out);
}

}  // namespace finescope
