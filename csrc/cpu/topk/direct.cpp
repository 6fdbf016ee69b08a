// A float32 screen of w where it lies. For few rows of x, for which packing w would take longer than it
// saves; and for rows that the screen of a packed matrix cannot separate, before all of their scores are
// computed exactly.
//
// Unlike there, thresholds here are no guesses: the k-th best score less its bound is certainly reached by
// the k-th best exact score, and what lies below that by its own bound is certainly not among the k best.
#include <algorithm>
#include <cmath>
#include <mutex>

#include "cpu/counts.h"
#include "cpu/topk/internal.h"

namespace finescope {
namespace {

// Rows of x that are screened together, while a few rows of w are in the first-level cache.
constexpr int64_t kRows = 32;
// Rows of w between two looks at the scores; a multiple of 3, which block_dots wants.
constexpr int64_t kChunk = 48;
constexpr float kTiny = 0x1p-60f, kHuge = 0x1p100f;  // squared norms of rows of w within the range of float32
constexpr float kNever = -3e38f;                     // below every threshold

struct Bounds {
  float relative;  // error of a score in |x||w|
  float cosine;    // error of a cosine
  float lost;      // what products and sums that fall below the range of float32 add up to

  explicit Bounds(int64_t d) {
    const double gamma = rounding_of_dots(d);
    // 2^-20 and 2^-19 for everything that is done with a dot and an x of norm 1 on the way to a comparison.
    relative = static_cast<float>(gamma + 0x1p-20);
    // Of the dot, and of |w|, whose relative error is half of that of its square.
    cosine = static_cast<float>(1.6 * gamma + 0x1p-19);
    lost = static_cast<float>(d) * 0x1p-124f;
  }
};

// The candidates of one row of x in some range of rows of w.
struct Candidates {
  float threshold = kOpen;  // a score that the k-th best exact one reaches
  float bound = 0.0f;       // of every score so far
  int64_t count = 0, limit = 0;
  bool overflow = false;

  float lowest() const { return threshold - bound - (std::fabs(threshold) + bound) * 0x1p-20f; }
  // Raises the threshold to what the `wanted` best scores show, and drops what cannot reach it.
  void raise(const TopkKernels& kernels, float* score, int32_t* column, int64_t wanted, int64_t most) {
    if (count < wanted) return;
    const float at = kernels.about_kth(score, count, wanted, most);
    threshold = std::max(threshold, at - bound - (std::fabs(at) + bound) * 0x1p-20f);
    count = kernels.keep(score, column, count, lowest());
  }
};

class Direct {
 public:
  Direct(const TopkProblem& p, const int64_t* rows, const Workers& workers, const TopkOutput& out,
         std::vector<int64_t>* again)
      : p_(p),
        rows_(rows),
        workers_(workers),
        out_(out),
        again_(again),
        stride_(round_up(p.d, 16)),
        wanted_(p.k + p.E),
        capacity_(4 * wanted_ + 512),
        in_place_(p.w.dtype == DType::f32 && p.d % 16 == 0),
        bounds_(p.d) {
    if (std::isfinite(p.floor)) {
      // Rounded down, so that nothing above the floor is below it.
      open_ = static_cast<float>(p.floor - std::fabs(p.floor) * 0x1p-20);
      if (!(std::fabs(open_) < 0x1p60f)) open_ = open_ < 0 ? kOpen : kClosed;
    }
  }

  void run(int64_t n) {
    const int64_t threads = workers_.threads, tall = std::clamp<int64_t>(kBytes / (capacity_ * 8), 1, kRows);
    const int64_t blocks = (n + tall - 1) / tall;
    if (blocks >= 2 * threads) {
      std::vector<Tokens> block(static_cast<size_t>(threads));
      for_each(workers_, blocks, [&](int64_t task, int worker) {
        Tokens& b = block[static_cast<size_t>(worker)];
        load(b, n * task / blocks, n * (task + 1) / blocks, 1);
        screen(b, 0);
        for (int64_t i = 0; i < b.rows; ++i) finish(b, i);
      });
      return;
    }
    Tokens b;
    // Waking other threads takes longer than to finish a row or two.
    const Workers alone{1, workers_.run};
    const int64_t parts = std::clamp<int64_t>(p_.N * p_.d >> 18, 1, threads == 1 ? 1 : 2 * threads);
    for (int64_t task = 0; task < blocks; ++task) {
      load(b, n * task / blocks, n * (task + 1) / blocks, parts);
      for_each(workers_, parts, [&](int64_t part, int) { screen(b, part); });
      for_each(b.rows > 4 ? workers_ : alone, b.rows, [&](int64_t i, int) { finish(b, i); });
    }
  }

 private:
  static constexpr int64_t kBytes = int64_t{2} << 20;  // of the candidates of a block

  struct Part {
    int64_t low = 0, high = 0;  // rows of w
    bool failed = false;
    std::vector<Candidates> found;  // by row of x
    std::vector<float> score, dot, w;
    std::vector<int32_t> column;
  };
  struct Tokens {  // rows of x
    int64_t first = 0, rows = 0;
    std::vector<float> x;
    std::vector<const float*> pointer;
    std::vector<float> norm;  // >= |x| as it is in `x`
    std::vector<double> norm64;
    std::vector<uint8_t> usable;
    std::vector<Part> parts;
  };

  void load(Tokens& b, int64_t first, int64_t end, int64_t parts) {
    const size_t n = static_cast<size_t>(end - first);
    b.first = first;
    b.rows = end - first;
    b.x.resize(n * static_cast<size_t>(stride_));
    b.pointer.resize(n);
    b.norm.assign(n, 0.0f);
    b.norm64.assign(n, 0.0);
    b.usable.assign(n, 1);
    for (int64_t i = 0; i < b.rows; ++i) {
      float* row = b.x.data() + i * stride_;
      b.pointer[i] = row;
      const uint32_t bits = kernels_.to_f32(row_of(p_.x, rows_[first + i]), p_.x.dtype, p_.d, row);
      float largest;
      std::memcpy(&largest, &bits, 4);
      b.usable[i] = open_ != kClosed && largest <= kTameHigh && (largest >= kTameLow || largest == 0.0f);
      if (!b.usable[i]) {
        std::fill(row, row + stride_, 0.0f);
        continue;
      }
      b.norm64[i] = std::sqrt(kernels_.squared_norm(row, stride_));
      if (p_.metric == Metric::cosine && b.norm64[i] > 0) {
        kernels_.multiply(row, stride_, static_cast<float>(1.0 / b.norm64[i]));
      } else {
        b.norm[i] = static_cast<float>(b.norm64[i]) * (1.0f + 0x1p-20f);
      }
    }
    b.parts.resize(static_cast<size_t>(parts));
    for (int64_t part = 0; part < parts; ++part) {
      Part& t = b.parts[part];
      t.low = p_.N * part / parts;
      t.high = p_.N * (part + 1) / parts;
      // Places of candidates are counted in 32 bits.
      t.failed = t.high - t.low > INT32_MAX;
      t.found.assign(n, Candidates{});
      for (int64_t i = 0; i < b.rows; ++i) {
        t.found[i].threshold = b.usable[i] ? open_ : kClosed;
        t.found[i].limit = 2 * wanted_ + 64;
      }
      t.score.resize(n * static_cast<size_t>(capacity_) + kSlack);
      t.column.resize(n * static_cast<size_t>(capacity_) + kSlack);
      t.dot.resize(n * static_cast<size_t>(kChunk));
      if (!in_place_) t.w.resize(static_cast<size_t>(kChunk * stride_));
    }
  }

  void screen(Tokens& b, int64_t number) {
    Part& t = b.parts[number];
    const float* w[kChunk];
    float factor[kChunk], added[kChunk];
    for (int64_t low = t.low; low < t.high && !t.failed; low += kChunk) {
      const int64_t n = std::min(kChunk, t.high - low);
      for (int64_t j = 0; j < n; ++j) {
        if (in_place_) {
          w[j] = reinterpret_cast<const float*>(row_of(p_.w, low + j));
        } else {
          w[j] = t.w.data() + j * stride_;
          kernels_.to_f32(row_of(p_.w, low + j), p_.w.dtype, p_.d, t.w.data() + j * stride_);
        }
      }
      kernels_.block_dots(b.pointer.data(), b.rows, w, n, stride_, t.dot.data(), kChunk);
      float largest, slack;
      if (!scale(w, low, n, factor, added, &largest, &slack)) {
        t.failed = true;
        return;
      }
      for (int64_t i = 0; i < b.rows; ++i) {
        Candidates& c = t.found[i];
        if (c.threshold == kClosed) continue;
        float* dot = t.dot.data() + i * kChunk;
        for (int64_t j = 0; j < n; ++j) dot[j] = dot[j] * factor[j] + added[j];
        const float bound =
            p_.metric == Metric::cosine ? bounds_.cosine : b.norm[i] * bounds_.relative * largest + slack;
        c.bound = std::max(c.bound, bound * 1.001f);
        const int64_t at = i * capacity_ + c.count;
        c.count += kernels_.pick(dot, n, c.lowest(), static_cast<int32_t>(low - t.low), t.score.data() + at,
                                 t.column.data() + at);
        if (c.count > c.limit) shrink(t, i);
      }
    }
  }

  // What makes scores of dots with rows low..low+n of w, and what their bounds depend on. False: float32 does
  // not hold them.
  bool scale(const float* const* w, int64_t low, int64_t n, float* factor, float* added, float* largest,
             float* slack) {
    float square[kChunk];
    kernels_.quick_squares(w, n, stride_, square);
    float most = 0.0f, bias = 0.0f;
    for (int64_t j = 0; j < n; ++j) {
      factor[j] = 1.0f;
      added[j] = p_.bias != nullptr ? static_cast<float>(p_.bias[low + j]) : 0.0f;
      bias = std::max(bias, std::fabs(added[j]));
      const auto any = [&](auto property) { return std::any_of(w[j], w[j] + p_.d, property); };
      if (!(square[j] < kHuge)) {
        const bool finite = !any([](float v) { return !std::isfinite(v); });
        if (finite || p_.metric == Metric::encode) return false;
      }
      if (!(square[j] < kHuge) || (p_.mask != nullptr && !p_.mask[low + j])) {
        factor[j] = 0.0f;  // makes a NaN of an infinity, which is not picked
        added[j] = kNever;
        continue;
      }
      most = std::max(most, square[j]);
      if (p_.metric != Metric::cosine) continue;
      if (square[j] >= kTiny) {
        factor[j] = 1.0f / std::sqrt(square[j]);
      } else if (any([](float v) { return v != 0.0f; })) {
        return false;
      }
    }
    // As bounds_.relative counts |w|: with the roundings of its square, and what that lost.
    *largest = std::sqrt(most * (1.0f + bounds_.relative) + bounds_.lost) * (1.0f + 0x1p-20f);
    *slack = bias * 0x1p-20f + (p_.bias != nullptr ? 0x1p-100f : 0.0f) + bounds_.lost;
    return bias < 0x1p60f;
  }

  void shrink(Part& t, int64_t i) {
    Candidates& c = t.found[i];
    c.raise(kernels_, t.score.data() + i * capacity_, t.column.data() + i * capacity_, wanted_,
            wanted_ + wanted_ / 8);
    if (c.count + kChunk > capacity_ * 3 / 4) {
      c.overflow = true;
      c.threshold = kClosed;
      c.count = 0;
    }
    c.limit = std::min(capacity_ - kChunk, std::max(2 * c.count, 2 * wanted_ + 64));
  }

  // The exact scores of row i's candidates, and the row.
  void finish(Tokens& b, int64_t i) {
    const int64_t row = rows_[b.first + i];
    std::vector<float> score;
    std::vector<int32_t> place;  // of a candidate's row of w among `id`
    std::vector<int64_t> id;
    Candidates all;
    all.threshold = open_;
    bool certain = b.usable[i];
    for (Part& t : b.parts) {
      const Candidates& c = t.found[i];
      certain = certain && !t.failed && !c.overflow;
      if (!certain) break;
      const float* s = t.score.data() + i * capacity_;
      score.insert(score.end(), s, s + c.count);
      for (int64_t j = 0; j < c.count; ++j) id.push_back(t.low + t.column[i * capacity_ + j]);
      all.bound = std::max(all.bound, c.bound);
      all.threshold = std::max(all.threshold, c.threshold);
    }
    if (!certain) {
      std::lock_guard<std::mutex> guard(lock_);
      again_->push_back(row);
      return;
    }
    all.count = static_cast<int64_t>(score.size());
    score.resize(score.size() + kSlack);
    place.resize(score.size());
    for (int64_t j = 0; j < all.count; ++j) place[j] = static_cast<int32_t>(j);
    all.raise(kernels_, score.data(), place.data(), wanted_, wanted_);
    count_exact(all.count);
    std::vector<Hit> hits;
    exact(row, b.norm64[i], id, place.data(), all.count, &hits);
    write_row(p_, out_, row, hits.data(), static_cast<int64_t>(hits.size()));
  }

  void exact(int64_t b, double x_norm, const std::vector<int64_t>& id, const int32_t* place, int64_t n,
             std::vector<Hit>* hits) {
    constexpr int64_t kAtOnce = 16;
    std::vector<double> x(static_cast<size_t>(stride_));
    kernels_.to_f64(row_of(p_.x, b), p_.x.dtype, p_.d, x.data());
    std::vector<float> copy(static_cast<size_t>(in_place_ ? 0 : kAtOnce * stride_));
    const float* rows[kAtOnce];
    double dot[kAtOnce];
    for (int64_t at = 0; at < n; at += kAtOnce) {
      const int64_t m = std::min(kAtOnce, n - at);
      for (int64_t j = 0; j < m; ++j) {
        const char* stored = row_of(p_.w, id[place[at + j]]);
        rows[j] = in_place_ ? reinterpret_cast<const float*>(stored) : copy.data() + j * stride_;
        if (!in_place_) kernels_.to_f32(stored, p_.w.dtype, p_.d, copy.data() + j * stride_);
      }
      kernels_.dots_f32(x.data(), rows, m, stride_, dot);
      for (int64_t j = 0; j < m; ++j) {
        const int64_t w = id[place[at + j]];
        const double w_norm =
            p_.metric == Metric::cosine ? std::sqrt(kernels_.squared_norm(rows[j], stride_)) : 0.0;
        const Hit hit{exact_score(p_, dot[j], w, x_norm, w_norm), w};
        if (hit.score > p_.floor && !excluded(p_, b, w)) hits->push_back(hit);
      }
    }
  }

  const TopkProblem& p_;
  const int64_t* rows_;
  const Workers& workers_;
  const TopkOutput& out_;
  std::vector<int64_t>* again_;
  const TopkKernels& kernels_ = topk_kernels();
  int64_t stride_, wanted_, capacity_;
  bool in_place_;
  Bounds bounds_;
  float open_ = kOpen;
  std::mutex lock_;
};

}  // namespace

void direct(const TopkProblem& p, const int64_t* rows, int64_t n, const Workers& workers,
            const TopkOutput& out, std::vector<int64_t>* again) {
  if (n > 0) Direct(p, rows, workers, out, again).run(n);
}

}  // namespace finescope
