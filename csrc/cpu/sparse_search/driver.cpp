// The driver of sparse_cosine_topk.
//
// The corpus is met in windows of rows that are turned over: for each latent a list of the rows that hold it,
// with values c / |c| in int16. A query u = q / |q|, in int16 too, is summed over its latents' lists into
// int16 sums s, one per row of the window, in units of A. With roundings d of the rows' values and e of the
// query's,
//   |s / A - <c, u> / |c|| <= |d| * |u + e| + |e| + terms / (2 A) + g,   g = (longest / 8 + 2 * terms + 64) * 2^-24,
// where |d| <= sqrt(longest) / 2 units, |e| is measured, every one of at most `terms` products is rounded by
// half a unit, and g covers norms in float32. For few queries sums are made in float32 over rows as they are
// and rounded to the same units, which the bound covers too. Units leave room for the roundings, so that no
// sum of a row that is judged overflows. Rows whose square float32 cannot hold, or with a latent twice, are
// not judged: they are candidates always.
//
// A row is a candidate for a query if its upper bound reaches the threshold: the k-th best lower bound of
// distinct rows so far, shared by all threads. Which rows become candidates depends on timing; the result
// does not, since every row that could be among the best is one, and candidates are ordered by their exact
// scores.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/sparse_search/panel.h"
#include "cpu/subnormals.h"

namespace finescope {
namespace {

// Sooner summed over rows as they are than over lists still to be made.
constexpr int64_t kFewQueries = 2;

template <class T>
void write_results(const std::vector<SparseCandidate>& found, int64_t k, int64_t id_offset, T* scores,
                   int64_t* ids) {
  int64_t n = 0;
  for (const SparseCandidate& c : found) {
    scores[n] = static_cast<T>(c.low);
    ids[n++] = c.row + id_offset;
  }
  std::fill(scores + n, scores + k, -std::numeric_limits<T>::infinity());
  std::fill(ids + n, ids + k, int64_t{-1});
}

int64_t longest(const Csr& rows) {
  int64_t most = 0;
  for (int64_t n = 0; n < rows.rows; ++n) most = std::max(most, rows.indptr[n + 1] - rows.indptr[n]);
  return most;
}

}  // namespace

SparseSearch::SparseSearch(const SparseSearchArgs& args, const PackedSparse* packed, const Workers& workers)
    : a_(args), packed_(packed), workers_(workers) {
  direct_ = packed == nullptr && a_.queries.rows <= kFewQueries;
  if (packed == nullptr) edges_ = sparse_windows(a_.corpus);
  longest_corpus_ = packed == nullptr ? longest(a_.corpus) : packed->longest();
  longest_query_ = longest(a_.queries);
  capacity_ = std::max<int64_t>(4 * std::min(a_.k, a_.corpus.rows), 1024);
  // Room for the roundings of products, values and weights.
  const double terms = static_cast<double>(std::min({longest_corpus_, longest_query_, kSparseMostEntries}));
  query_unit_ = kSparseUnit - (terms / 2 + 2 * std::sqrt(terms) + 64.0);
  unit_ = kSparseUnit * query_unit_ / 32768.0;
}

void SparseSearch::prepare(Query& query, int64_t q) {
  query.norm = sparse_norm(a_.queries, q);
  query.dead = !std::isfinite(query.norm);
  query.threshold = a_.floor;
  if (a_.exclude != nullptr) {
    query.excluded.assign(a_.exclude + q * a_.E, a_.exclude + (q + 1) * a_.E);
    std::sort(query.excluded.begin(), query.excluded.end());
  }
  query.zero = true;
  std::vector<std::pair<int64_t, double>> entries;
  with_types(a_.queries, [&](const auto* indices, const auto* values, auto convert) {
    for (int64_t i = a_.queries.indptr[q]; i < a_.queries.indptr[q + 1]; ++i) {
      const double v = convert(values[i]);
      query.zero = query.zero && v == 0.0;
      entries.push_back({static_cast<int64_t>(indices[i]), v});
    }
  });
  query.scale = a_.cosine ? 1.0 : query.norm;
  if (query.dead || query.zero || !(query.norm > 1e-100 && query.norm < 1e100)) {
    // Its exact scores may still be ordinary, or, for zero, all alike: no screen.
    query.error = std::numeric_limits<double>::infinity();
    return;
  }
  // Of a latent that is there twice, the last entry counts, as it does in the exact score.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  double square = 0.0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i + 1 < entries.size() && entries[i + 1].first == entries[i].first) continue;
    const double u = entries[i].second / query.norm;
    const int16_t weight = static_cast<int16_t>(std::nearbyint(u * query_unit_));
    square += (weight / query_unit_ - u) * (weight / query_unit_ - u);
    if (weight != 0) query.terms.push_back({static_cast<int32_t>(entries[i].first), weight});
    if (!held_.empty() && weight != 0) held_[entries[i].first] = 1;
  }
  const double e = std::sqrt(square) * 1.0001,
               most = static_cast<double>(std::min(longest_corpus_, kSparseMostEntries));
  const double terms =
      static_cast<double>(std::max<int64_t>(1, std::min<int64_t>(longest_corpus_, query.terms.size())));
  query.error = 0.5001 * std::sqrt(most) / kSparseUnit * (1.0 + e) + e + terms / (2.0 * unit_) +
                (most / 8.0 + 2.0 * terms + 64.0) * 0x1p-24;
}

void SparseSearch::begin(int64_t panel) {
  first_ = panel * kPanel;
  if (packed_ == nullptr && !direct_) held_.assign(a_.corpus.latents, 0);
  queries_.clear();
  for (int64_t q = first_; q < std::min(a_.queries.rows, first_ + kPanel); ++q) {
    queries_.push_back(std::make_unique<Query>());
    prepare(*queries_.back(), q);
  }
  const int64_t tasks = std::max(windows(), static_cast<int64_t>(queries_.size()));
  while (static_cast<int64_t>(parts_.size()) < std::min<int64_t>(workers_.threads, tasks)) {
    parts_.push_back(std::make_unique<Part>(a_));
  }
  for (auto& part : parts_) {
    part->found.assign(queries_.size(), {});
    part->sums.resize(kSparseWindow);
    part->hits.resize(kSparseWindow + 1);  // one past the last is written
  }
}

bool SparseSearch::allowed(const Query& query, int64_t row) const {
  if (a_.mask != nullptr && !a_.mask[row]) return false;
  return !std::binary_search(query.excluded.begin(), query.excluded.end(), row);
}

int64_t SparseSearch::scan(Part& part, int64_t w) {
  if (packed_ != nullptr) {
    screen(part, packed_->window(w), packed_->begin(w));
    return -1;
  }
  if (direct_) return scan_direct(part, edges_[w], edges_[w + 1]);
  if (!part.turner) part.turner = std::make_unique<SparseTurner>(a_.corpus);
  const int64_t bad = part.turner->count(edges_[w], edges_[w + 1], held_.data());
  if (bad < 0) screen(part, part.turner->window(), edges_[w]);
  return bad;
}

int64_t SparseSearch::scan_direct(Part& part, int64_t begin, int64_t end) {
  part.query.resize(a_.corpus.latents, 0.0f);
  part.norm.resize(kSparseWindow);
  const SparseWindow window{nullptr, nullptr, nullptr, part.norm.data(), end - begin};
  const SparseDirectArgs args{a_.corpus, part.query.data(), part.sums.data(), part.norm.data()};
  for (size_t q = 0; q < queries_.size(); ++q) {
    // A query without terms is summed too, for the norms.
    const Query& query = *queries_[q];
    for (const SparseTerm& term : query.terms) part.query[term.latent] = term.weight;
    const int64_t bad = sparse_screen().direct(args, begin, end);
    for (const SparseTerm& term : query.terms) part.query[term.latent] = 0.0f;
    if (bad >= 0) return bad;
    if (q == 0) offer_unjudged(part, window, begin);
    judge(part, q, window, begin);
  }
  return -1;
}

void SparseSearch::screen(Part& part, const SparseWindow& window, int64_t begin) {
  offer_unjudged(part, window, begin);
  for (size_t q = 0; q < queries_.size(); ++q) {
    const std::vector<SparseTerm>& terms = queries_[q]->terms;
    sparse_screen().sum(window, terms.data(), static_cast<int64_t>(terms.size()), part.sums.data());
    judge(part, q, window, begin);
  }
}

int64_t SparseSearch::run(const TopkOutput& out) {
  const int64_t panels = a_.k > 0 ? (a_.queries.rows + kPanel - 1) / kPanel : 0;
  std::atomic<int64_t> bad{-1};
  // What is in a packed corpus has not been looked at: exact scores may find a latent that is none.
  const auto guarded = [&](const auto& body) {
    try {
      body();
    } catch (const SparseRowError& error) {
      bad = error.row;
    }
  };
  for (int64_t panel = 0; panel < panels && bad < 0; ++panel) {
    begin(panel);
    for_each(workers_, windows(), [&](int64_t window, int worker) {
      guarded([&] {
        const int64_t row = scan(*parts_[worker], window);
        if (row >= 0) bad = row;
      });
    });
    if (bad >= 0) break;
    for_each(workers_, static_cast<int64_t>(queries_.size()), [&](int64_t q, int worker) {
      guarded([&] {
        const std::vector<SparseCandidate> found = finish(q, parts_[worker]->exact);
        const int64_t at = (first_ + q) * a_.k;
        if (out.f64) {
          write_results(found, a_.k, a_.id_offset, static_cast<double*>(out.score) + at, out.id + at);
        } else {
          write_results(found, a_.k, a_.id_offset, static_cast<float*>(out.score) + at, out.id + at);
        }
      });
    });
  }
  return bad;
}

int64_t sparse_search(const SparseSearchArgs& args, const PackedSparse* packed, const Workers& workers,
                      const TopkOutput& out) {
  const KeepSubnormals keep;
  return SparseSearch(args, packed, workers).run(out);
}

}  // namespace finescope
