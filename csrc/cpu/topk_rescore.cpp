// Exact scores of candidates, and the choice of the best.
//
// Rows of w are what has to be fetched from memory. Candidates of a thousand or more rows of x are therefore
// gathered by row of w, which is then read and widened once for all of them. Before, while a block of rows of
// x is in cache, its candidates are sifted with a bfloat16 copy of w, whose bound is so tight that hardly
// more than k of them remain.
#include <algorithm>
#include <cmath>
#include <mutex>

#include "cpu/topk_screen.h"

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

void prefetch_row(const Matrix& w, int64_t id, int64_t d) {
  const char* row = row_of(w, id);
  for (int64_t at = 0; at < d * element_size(w.dtype); at += 64) __builtin_prefetch(row + at);
}

}  // namespace

int64_t bucket_count(const TopkProblem& p) {
  return std::min<int64_t>(2048, p.N);
}

namespace {

// Pairs by row of w.
class Gathered {
 public:
  Gathered(const TopkProblem& p, const Packed& packed, const Workers& workers, Superblock* s)
      : p_(p),
        packed_(packed),
        workers_(workers),
        s_(*s),
        buckets_(bucket_count(p)),
        stride_(round_up(p.d, 16)) {
    gather();
    x_.assign(p.x, p.d, s_.first, static_cast<int64_t>(s_.count.size()), workers);
    scratch_.resize(static_cast<size_t>(workers.threads));
  }

  int64_t total() const { return begin_[buckets_]; }

  void score() {
    each_row([&](Scratch& t, const Pair* pairs, const float* const* rows, int64_t n) {
      const int64_t id = pairs->id;
      kernels_.to_f64(row_of(p_.w, id), p_.w.dtype, p_.d, t.wide.data());
      kernels_.dots_f32(t.wide.data(), rows, n, stride_, t.dot.data());
      const double w_norm = p_.metric == Metric::cosine ? packed_.norm64[id] : 0.0;
      for (int64_t i = 0; i < n; ++i) {
        s_.exact[pairs[i].slot] = exact_score(p_, t.dot[i], id, s_.norm64[pairs[i].row], w_norm);
      }
    });
  }

 private:
  struct Scratch {
    std::vector<double> wide, dot;
    std::vector<Pair> sorted;
    std::vector<int32_t> place;
    std::vector<const float*> pointer;
  };

  void gather() {
    const int64_t rows = static_cast<int64_t>(s_.count.size());
    begin_.resize(static_cast<size_t>(buckets_ + 1));
    int64_t total = 0;
    for (int64_t b = 0; b < buckets_; ++b) {
      begin_[b] = total;
      for (Superblock::Part& part : s_.parts) {
        const int64_t n = part.bucket[b];
        part.bucket[b] = total;
        total += n;
      }
    }
    begin_[buckets_] = total;
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
          pairs[part.bucket[bucket_of(p_, buckets_, *id)]++] = {*id, static_cast<int32_t>(row),
                                                                static_cast<int32_t>(slot)};
        }
      }
    });
  }

  // body(scratch, pairs, rows of x, n) for each row of w that has pairs.
  template <class Body>
  void each_row(const Body& body) {
    for_each(workers_, buckets_, [&](int64_t b, int worker) {
      const int64_t n = begin_[b + 1] - begin_[b];
      if (n == 0) return;
      Scratch& t = scratch_[worker];
      // The smallest ids of this bucket and of the next.
      const int64_t low = (b * p_.N + buckets_ - 1) / buckets_,
                    high = ((b + 1) * p_.N + buckets_ - 1) / buckets_;
      order_bucket(reinterpret_cast<Pair*>(s_.pairs.data()) + begin_[b], n, low, high, t.sorted, t.place);
      const size_t stride = static_cast<size_t>(stride_), count = static_cast<size_t>(n);
      if (t.wide.size() < stride) t.wide.resize(stride);
      if (t.pointer.size() < count) t.pointer.resize(count), t.dot.resize(count);
      for (int64_t i = 0; i < n; ++i) t.pointer[i] = x_[t.sorted[i].row];
      for (int64_t i = 0; i < n;) {
        int64_t end = i + 1;
        while (end < n && t.sorted[end].id == t.sorted[i].id) ++end;
        if (end < n) prefetch_row(p_.w, t.sorted[end].id, p_.d);
        body(t, t.sorted.data() + i, t.pointer.data() + i, end - i);
        i = end;
      }
    });
  }

  const TopkProblem& p_;
  const Packed& packed_;
  const Workers& workers_;
  Superblock& s_;
  const TopkKernels& kernels_ = topk_kernels();
  int64_t buckets_, stride_;
  F32Rows x_;
  std::vector<int64_t> begin_;
  std::vector<Scratch> scratch_;
};

}  // namespace

const float* Refiner::load(const ScreenPlan& plan, int64_t b, double x_norm) {
  const TopkProblem& p = plan.problem;
  const bool as_it_is = plan.centring.x.empty();
  if (as_it_is && p.x.dtype == DType::f32) return reinterpret_cast<const float*>(row_of(p.x, b));
  x_.resize(static_cast<size_t>(round_up(p.d, 16)));
  plan.kernels.to_f32(row_of(p.x, b), p.x.dtype, p.d, x_.data());
  if (as_it_is) return x_.data();
  if (p.metric == Metric::cosine && x_norm > 0) {
    for (int64_t i = 0; i < p.d; ++i) x_[i] = static_cast<float>(double{x_[i]} / x_norm);
  }
  subtract(x_.data(), plan.centring.x.data(), p.d);
  return x_.data();
}

int64_t Refiner::refine(const ScreenPlan& plan, const float* x, double x_norm, float rows_size,
                        int32_t* column, int64_t n) {
  const TopkProblem& p = plan.problem;
  const int64_t wanted = plan.wanted;
  // One exact score more costs about as much as looking at two candidates here.
  if (n < wanted + wanted / 4 + 4) return n;
  const Packed& w = plan.packed;
  const bool half = w.half != nullptr;
  rows_.resize(static_cast<size_t>(n));
  score_.resize(static_cast<size_t>(n + kSlack));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t id = w.row[column[i]];
    rows_[i] = half ? w.half + id * p.d * 2 : row_of(p.w, id);
  }
  plan.kernels.quick_dots(x, rows_.data(), half ? DType::bf16 : p.w.dtype, n, p.d, score_.data());
  const bool centred = !plan.centring.x.empty();
  if (p.metric == Metric::cosine) {
    for (int64_t i = 0; i < n; ++i) {
      const double norms = (centred ? 1.0 : x_norm) * w.norm64[w.row[column[i]]];
      // Products of such rows over- or underflow float32: nothing is known about their cosines.
      if (norms > 0 && !(norms > 0x1p-100 && norms < 0x1p120)) return n;
      score_[i] = norms > 0 ? static_cast<float>(static_cast<double>(score_[i]) / norms) : 0.0f;
    }
  }
  if (!plan.bias.empty()) {
    for (int64_t i = 0; i < n; ++i) score_[i] += plan.bias[column[i]];
  }
  const double u = 0x1p-24, roundings = static_cast<double>(p.d) / 16 + 24;
  const double gamma = 1.01 * roundings * u / (1 - std::min(0.5, roundings * u)) + 0x1p-20;
  // The copy is of what was left of w; x was rounded when ν was taken out of it.
  const float size = half ? w.max_norm + w.half_err : plan.max_size;
  const float x_size = centred || p.metric != Metric::cosine ? rows_size : 1.0f;
  const float x_err = centred ? x_size * 0x1p-22f + (p.metric == Metric::cosine ? 0x1p-22f : 0.0f) : 0.0f;
  const float error = (x_size * (static_cast<float>(gamma) * size + (half ? w.half_err : 0.0f)) +
                       x_err * size + plan.max_slack) *
                          1.001f +
                      // What products that fall below the range of float32 add up to; cosines have none.
                      (p.metric == Metric::cosine ? 0.0f : static_cast<float>(p.d) * 0x1p-124f);
  // The best `wanted` have exact scores of at least this value less the error; what lies lower than that by
  // another error is below all of them.
  const float at = plan.kernels.about_kth(score_.data(), n, wanted, wanted);
  return plan.kernels.keep(score_.data(), column, n, at - 2.0f * error - (std::fabs(at) + error) * 0x1p-20f);
}

void rescore(const ScreenPlan& plan, const Workers& workers, Superblock* block) {
  Gathered pairs(plan.problem, plan.packed, workers, block);
  block->exact.resize(pairs.total());
  pairs.score();
}

void select(const TopkProblem& p, const Workers& workers, const TopkOutput& out, Superblock* block,
            std::vector<int64_t>* again) {
  Superblock& s = *block;
  std::mutex lock;
  std::vector<std::vector<Hit>> hits(static_cast<size_t>(workers.threads));
  for_each(workers, static_cast<int64_t>(s.parts.size()), [&](int64_t task, int worker) {
    std::vector<Hit>& row_hits = hits[worker];
    const Superblock::Part& part = s.parts[task];
    for (int64_t row = part.row; row < part.end; ++row) {
      const int64_t b = s.first + row;
      if (s.bad[row]) {
        write_bad_row(p, out, b);
        continue;
      }
      row_hits.clear();
      int64_t reached = 0;
      for (int64_t slot = s.begin[row]; slot < s.begin[row + 1]; ++slot) {
        const Hit hit{s.exact[slot], part.id[slot - part.slot]};
        if (!(hit.score > p.floor) || (p.E > 0 && excluded(p, b, hit.id))) continue;
        reached += hit.score >= s.tau[row];
        row_hits.push_back(hit);
      }
      // Everything with an exact score of tau or more is among the hits. k of them reach it: nothing is
      // missing.
      if (s.tau[row] == kClosed || (s.raised[row] && reached < p.k)) {
        std::lock_guard<std::mutex> guard(lock);
        again->push_back(b);
        continue;
      }
      write_row(p, out, b, row_hits.data(), static_cast<int64_t>(row_hits.size()));
    }
  });
}

}  // namespace finescope
