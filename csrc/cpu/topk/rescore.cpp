// Exact scores of candidates.
//
// Rows of w are what has to be fetched from memory. Candidates of a thousand or more rows of x are therefore
// gathered by row of w, which is then read once for all of them: first in float32, whose bound is so tight
// that hardly more than k for each row of x remain, and while it is in the first-level cache, for these, in
// float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/counts.h"
#include "cpu/topk/screen.h"

namespace finescope {
namespace {

struct Pair {
  int32_t id, row, slot;
};

// The pairs of one bucket, ordered by id.
void order_bucket(Pair* pairs, int64_t n, int64_t low, int64_t high, std::vector<Pair>& sorted,
                  std::vector<int32_t>& place) {
  sorted.resize(static_cast<size_t>(n));
  place.assign(static_cast<size_t>(high - low + 1), 0);
  for (int64_t i = 0; i < n; ++i) ++place[pairs[i].id - low + 1];
  for (int64_t i = 0; i < high - low; ++i) place[i + 1] += place[i];
  for (int64_t i = 0; i < n; ++i) sorted[place[pairs[i].id - low]++] = pairs[i];
}

// Pairs by row of w.
class Gathered {
 public:
  Gathered(const ScreenPlan& plan, const Workers& workers, Superblock* s)
      : plan_(plan),
        p_(plan.problem),
        packed_(plan.packed),
        workers_(workers),
        s_(*s),
        buckets_(p_.N),
        stride_(round_up(p_.d, 16)) {
    gather();
    find_lowest();
    x_.assign(p_.x, p_.d, s_.first, static_cast<int64_t>(s_.count.size()), workers);
    scratch_.resize(static_cast<size_t>(workers.threads));
  }

  int64_t total() const { return begin_[buckets_.count]; }

  void score() {
    each_row([&](Scratch& t, const Pair* pairs, const float* const* rows, int64_t n, int64_t more) {
      const int64_t id = pairs->id;
      const char* stored = row_of(p_.w, id);
      const double w_norm = p_.metric == Metric::cosine ? packed_.norm64[id] : 0.0;
      n = sift(t, pairs, rows, n, more, stored, id, w_norm);
      if (n == 0) return;
      t.exact += n;
      kernels_.to_f64(stored, p_.w.dtype, p_.d, t.wide.data());
      kernels_.dots_f32(t.wide.data(), t.passed.data(), n, stride_, t.dot.data());
      for (int64_t i = 0; i < n; ++i) {
        const Pair& pair = pairs[t.place[i]];
        s_.exact[pair.slot] = exact_score(p_, t.dot[i], id, s_.norm64[pair.row], w_norm);
      }
    });
  }

  void tell() const {
    pair_counts.passed += total();
    for (const Scratch& t : scratch_) pair_counts.exact += t.exact;
  }

 private:
  struct Scratch {
    std::vector<double> wide, dot;
    std::vector<float> narrow, quick;
    std::vector<Pair> sorted;
    std::vector<int32_t> first, place;
    std::vector<const float*> pointer, passed;
    int64_t exact = 0;  // pairs

    void reserve(size_t stride, size_t n) {
      if (wide.size() < stride) wide.resize(stride), narrow.resize(stride);
      if (pointer.size() >= n) return;
      pointer.resize(n), passed.resize(n), place.resize(n), quick.resize(n), dot.resize(n);
    }
  };

  // What a float32 dot must reach, from the thresholds of the rows: the relative error of |x| |w| that
  // quick_dots and the comparison make, and what products below the range of float32 add up to.
  void find_lowest() {
    const double relative = rounding_of_quick_dots(stride_) + 0x1p-30;
    lowest_.resize(s_.count.size());
    for (size_t row = 0; row < lowest_.size(); ++row) {
      double error = relative;
      if (p_.metric != Metric::cosine) {
        const double x_size = (s_.size[row] + plan_.centring.x_size) * 1.001;
        error = relative * x_size * plan_.max_size * 1.001 + static_cast<double>(stride_) * 0x1p-124;
      }
      lowest_[row] = s_.tau[row] - error - std::fabs(s_.tau[row]) * 0x1p-48;
    }
  }

  // Drops the pairs of a row of w that are certainly below the thresholds of their rows of x: their exact
  // scores are -inf. Leaves the others' numbers in t.place and their rows in t.passed; returns how many.
  int64_t sift(Scratch& t, const Pair* pairs, const float* const* rows, int64_t n, int64_t more,
               const char* stored, int64_t id, double w_norm) {
    const bool in_place = p_.w.dtype == DType::f32 && p_.d == stride_;
    const float* w = reinterpret_cast<const float*>(stored);
    if (!in_place) {
      kernels_.to_f32(stored, p_.w.dtype, p_.d, t.narrow.data());
      w = t.narrow.data();
    }
    const int64_t later = more > 0 ? pairs[n].id : id;
    const float* next = in_place ? reinterpret_cast<const float*>(row_of(p_.w, later)) : w;
    kernels_.quick_dots(w, rows, n, more, next, stride_, t.quick.data());
    const double bias = p_.bias != nullptr ? p_.bias[id] + std::fabs(p_.bias[id]) * 0x1p-48 : 0.0;
    int64_t passed = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double score = t.quick[i] + bias;
      bool may_reach = true;
      if (p_.metric == Metric::cosine) {
        const double norms = s_.norm64[pairs[i].row] * w_norm;
        // Products of other rows over- or underflow float32: nothing is known about their cosines.
        if (norms > 0x1p-80 && norms < 0x1p120) {
          may_reach = !(score < lowest_[pairs[i].row] * norms);
        }
      } else {
        may_reach = !(score < lowest_[pairs[i].row]);
      }
      t.place[passed] = static_cast<int32_t>(i);
      t.passed[passed] = rows[i];
      passed += may_reach;
      s_.exact[pairs[i].slot] = -std::numeric_limits<double>::infinity();
    }
    return passed;
  }

  void gather() {
    const int64_t rows = static_cast<int64_t>(s_.count.size());
    begin_.resize(static_cast<size_t>(buckets_.count + 1));
    int64_t total = 0;
    for (int64_t b = 0; b < buckets_.count; ++b) {
      begin_[b] = total;
      for (Superblock::Part& part : s_.parts) {
        const int64_t n = part.bucket[b];
        part.bucket[b] = total;
        total += n;
      }
    }
    begin_[buckets_.count] = total;
    s_.begin.resize(static_cast<size_t>(rows + 1));
    s_.begin[0] = 0;
    for (int64_t i = 0; i < rows; ++i) s_.begin[i + 1] = s_.begin[i] + s_.count[i];
    s_.pairs.resize(total * 3);
    Pair* pairs = reinterpret_cast<Pair*>(s_.pairs.data());
    for_each(workers_, static_cast<int64_t>(s_.parts.size()), [&](int64_t task, int) {
      Superblock::Part& part = s_.parts[task];
      part.slot = s_.begin[part.row];
      const int32_t* id = part.id.data();
      for (int64_t row = part.row; row < part.end; ++row) {
        for (int64_t slot = s_.begin[row]; slot < s_.begin[row + 1]; ++slot, ++id) {
          pairs[part.bucket[buckets_.of(*id)]++] = {*id, static_cast<int32_t>(row),
                                                    static_cast<int32_t>(slot)};
        }
      }
    });
  }

  // body(scratch, pairs, rows of x, n, more) for each row of w that has n pairs; `more` follow them.
  template <class Body>
  void each_row(const Body& body) {
    for_each(workers_, buckets_.count, [&](int64_t b, int worker) {
      const int64_t n = begin_[b + 1] - begin_[b];
      if (n == 0) return;
      Scratch& t = scratch_[worker];
      order_bucket(reinterpret_cast<Pair*>(s_.pairs.data()) + begin_[b], n, b << buckets_.shift,
                   (b + 1) << buckets_.shift, t.sorted, t.first);
      t.reserve(static_cast<size_t>(stride_), static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) t.pointer[i] = x_[t.sorted[i].row];
      for (int64_t i = 0; i < n;) {
        int64_t end = i + 1;
        while (end < n && t.sorted[end].id == t.sorted[i].id) ++end;
        body(t, t.sorted.data() + i, t.pointer.data() + i, end - i, n - end);
        i = end;
      }
    });
  }

  const ScreenPlan& plan_;
  const TopkProblem& p_;
  const Packed& packed_;
  const Workers& workers_;
  Superblock& s_;
  const TopkKernels& kernels_ = topk_kernels();
  const Buckets buckets_;
  int64_t stride_;
  std::vector<double> lowest_;  // by row of x
  F32Rows x_;
  std::vector<int64_t> begin_;
  std::vector<Scratch> scratch_;
};

}  // namespace

void rescore(const ScreenPlan& plan, const Workers& workers, Superblock* block) {
  Gathered pairs(plan, workers, block);
  block->exact.resize(pairs.total());
  pairs.score();
  pairs.tell();
}

}  // namespace finescope
