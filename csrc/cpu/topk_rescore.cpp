// Exact scores of candidates, and the choice of the best.
//
// Rows of w are what has to be fetched from memory. Candidates of a thousand or more rows of x are therefore gathered
// by row of w, which is then read and widened once for all of them.
#include <algorithm>
#include <mutex>

#include "cpu/topk_internal.h"

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

int64_t bucket_count(const TopkProblem& p) { return std::min<int64_t>(2048, p.N); }

void rescore(const TopkProblem& p, const Packed& packed, const Workers& workers, Superblock* block) {
  Superblock& s = *block;
  const TopkKernels& kernels = topk_kernels();
  const int64_t buckets = bucket_count(p), stride = round_up(p.d, 16);
  const int64_t rows = static_cast<int64_t>(s.count.size());

  std::vector<int64_t> bucket_begin(static_cast<size_t>(buckets + 1));
  int64_t total = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    bucket_begin[b] = total;
    for (Superblock::Part& part : s.parts) {
      const int64_t n = part.bucket[b];
      part.bucket[b] = total;
      total += n;
    }
  }
  bucket_begin[buckets] = total;
  s.begin.resize(static_cast<size_t>(rows + 1));
  s.begin[0] = 0;
  for (int64_t i = 0; i < rows; ++i) s.begin[i + 1] = s.begin[i] + s.count[i];
  s.exact.resize(static_cast<size_t>(total));
  std::vector<Pair> pairs(static_cast<size_t>(total));
  const int64_t part_count = static_cast<int64_t>(s.parts.size());
  for_each(workers, part_count, [&](int64_t task, int) {
    Superblock::Part& part = s.parts[task];
    const int64_t end = task + 1 < part_count ? s.parts[task + 1].row : rows;
    part.slot = s.begin[part.row];
    const int32_t* id = part.id.data();
    for (int64_t row = part.row; row < end; ++row) {
      for (int64_t slot = s.begin[row]; slot < s.begin[row + 1]; ++slot, ++id) {
        pairs[part.bucket[bucket_of(p, buckets, *id)]++] = {*id, static_cast<int32_t>(row), static_cast<int32_t>(slot)};
      }
    }
  });

  F32Rows x;
  x.assign(p.x, p.d, s.first, rows, workers);
  struct Scratch {
    std::vector<double> wide, dot;
    std::vector<Pair> sorted;
    std::vector<int32_t> place;
    std::vector<const float*> pointer;
  };
  std::vector<Scratch> scratch(static_cast<size_t>(workers.threads));
  for_each(workers, buckets, [&](int64_t b, int worker) {
    const int64_t n = bucket_begin[b + 1] - bucket_begin[b];
    if (n == 0) return;
    Scratch& t = scratch[worker];
    // The smallest ids of this bucket and of the next.
    const int64_t low = (b * p.N + buckets - 1) / buckets, high = ((b + 1) * p.N + buckets - 1) / buckets;
    order_bucket(pairs.data() + bucket_begin[b], n, low, high, t.sorted, t.place);
    t.wide.resize(static_cast<size_t>(stride));
    t.pointer.resize(static_cast<size_t>(n));
    t.dot.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) t.pointer[i] = x[t.sorted[i].row];
    for (int64_t i = 0; i < n;) {
      const int64_t id = t.sorted[i].id;
      int64_t end = i + 1;
      while (end < n && t.sorted[end].id == id) ++end;
      if (end < n) prefetch_row(p.w, t.sorted[end].id, p.d);
      kernels.to_f64(row_of(p.w, id), p.w.dtype, p.d, t.wide.data());
      kernels.dots_f32(t.wide.data(), t.pointer.data() + i, end - i, stride, t.dot.data() + i);
      const double w_norm = p.metric == Metric::cosine ? packed.norm64[id] : 0.0;
      for (; i < end; ++i) {
        const Pair& pair = t.sorted[i];
        s.exact[pair.slot] = exact_score(p, t.dot[i], id, s.norm64[pair.row], w_norm);
      }
    }
  });
}

void select(const TopkProblem& p, const Workers& workers, const TopkOutput& out, Superblock* block,
            std::vector<int64_t>* again) {
  Superblock& s = *block;
  std::mutex lock;
  std::vector<std::vector<Hit>> hits(static_cast<size_t>(workers.threads));
  for_each(workers, static_cast<int64_t>(s.parts.size()), [&](int64_t task, int worker) {
    std::vector<Hit>& row_hits = hits[worker];
    const Superblock::Part& part = s.parts[task];
    const int64_t end = task + 1 < static_cast<int64_t>(s.parts.size()) ? s.parts[task + 1].row
                                                                         : static_cast<int64_t>(s.count.size());
    for (int64_t row = part.row; row < end; ++row) {
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
      // Everything with an exact score of tau or more is among the hits. k of them reach it: nothing is missing.
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
