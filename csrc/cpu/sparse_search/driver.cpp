// The driver of sparse_cosine_topk.
//
// Values of rows c / |c| and of queries u = q / |q|, in int16, are summed into int16 sums s, in units of A.
// That is done over rows as they are, for up to 64 queries at a time (rows.inl). Or a packed corpus is met in
// windows of rows that are turned over: for each latent a list of the rows that hold it; then each query is
// summed over its latents' lists, into one sum per row of the window (screen.inl). The first looks at every
// entry of the corpus for all queries together, the second at few of them for each query, so numbers of both
// decide. With roundings d of the rows' values and e of the query's,
//   |s / A - <c, u> / |c|| <= |d| * |u + e| + |e| + terms / (2 A) + g,   g = (longest / 8 + 2 * terms + 64) * 2^-24,
// where |d| <= sqrt(longest) / 2 units, |e| is measured, every one of at most `terms` products is rounded by
// half a unit, and g covers norms in float32. For a single query sums are made in float32 and rounded to the same
// units, which the bound covers too. Units leave room for the roundings, so that no sum of a row that
// is judged overflows. Rows whose square float32 cannot hold, or with a latent twice, are not judged: they are
// candidates always.
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

#include "cpu/counts.h"
#include "cpu/sparse_search/panel.h"
#include "cpu/subnormals.h"

namespace finescope {
namespace {

// Rows that are summed before their sums are looked at: these stay in the first-level cache.
constexpr int64_t kBlock = 128;
constexpr int64_t kRoom = 4096;  // entries of such rows

// Queries that are looked at together, in sides of up to 64, with memory for where their latents stand.
constexpr int64_t kMostSides = 16, kMostPlaces = int64_t{1} << 23;

// What summing takes, in nanoseconds, measured on a Xeon with AVX2 and with AVX-512, which differ by less than a
// fifth: to find a list, to add an entry of it, or of one with a value for every row, and to look at a row's sum
// afterwards; to look at an entry of a row, to meet one that a query has, and to weigh it for a query.
constexpr struct {
  double list = 250.0, add = 0.85, full = 0.1, sum = 0.15, look = 0.6, meet = 0.3, weigh = 0.02;
} kCost;
constexpr int64_t kJudgedWindows = 4;

std::atomic<SparseWay> way{SparseWay::sooner};

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
  const int64_t sides =
      std::clamp<int64_t>(kMostPlaces / std::max<int64_t>(1, a_.corpus.latents), 1, kMostSides);
  tall_ = sides * std::end(kSparsePanelWidths)[-1];
  // Both: lists are of the rows as they were, sums of the rows as they are.
  longest_corpus_ = std::max(longest(a_.corpus), packed == nullptr ? 0 : packed->longest());
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
  }
  const double e = std::sqrt(square) * 1.0001,
               most = static_cast<double>(std::min(longest_corpus_, kSparseMostEntries));
  const double terms =
      static_cast<double>(std::max<int64_t>(1, std::min<int64_t>(longest_corpus_, query.terms.size())));
  query.error = 0.5001 * std::sqrt(most) / kSparseUnit * (1.0 + e) + e + terms / (2.0 * unit_) +
                (most / 8.0 + 2.0 * terms + 64.0) * 0x1p-24;
}

void SparseSearch::begin(int64_t panel) {
  first_ = panel * tall_;
  queries_.clear();
  for (int64_t q = first_; q < std::min(a_.queries.rows, first_ + tall_); ++q) {
    queries_.push_back(std::make_unique<Query>());
    prepare(*queries_.back(), q);
  }
  by_rows_ = packed_ == nullptr || rows_sooner();
  sides_.clear();
  if (by_rows_) {
    if (edges_.empty()) edges_ = sparse_windows(a_.corpus);
    const int64_t most = std::end(kSparsePanelWidths)[-1], n = static_cast<int64_t>(queries_.size());
    for (int64_t q = 0; q < n; q += most) sides_.push_back(side(q, std::min(most, n - q)));
  }
  const int64_t tasks = std::max(windows(), static_cast<int64_t>(queries_.size()));
  while (static_cast<int64_t>(parts_.size()) < std::min<int64_t>(workers_.threads, tasks)) {
    parts_.push_back(std::make_unique<Part>(a_));
  }
  for (auto& part : parts_) {
    part->found.assign(queries_.size(), {});
    part->sums.resize(kSparseWindow);
    part->hits.resize(kSparseWindow + 1);  // one past the last is written
    if (!by_rows_) continue;
    part->panel_hits.resize(kBlock * std::end(kSparsePanelWidths)[-1] + 1);
    part->norm.resize(kBlock);
    const size_t room = std::max(longest_corpus_ + 32, kRoom);
    part->places.resize(room);
    part->values.resize(room);
    part->words.resize(room);
  }
}

bool SparseSearch::allowed(const Query& query, int64_t row) const {
  if (a_.mask != nullptr && !a_.mask[row]) return false;
  return !std::binary_search(query.excluded.begin(), query.excluded.end(), row);
}

// Whether summing rows as they are would take less time than summing packed lists, by the entries that both
// would meet, counted in some of the windows.
bool SparseSearch::rows_sooner() const {
  if (way != SparseWay::sooner) return way == SparseWay::rows;
  const int64_t windows = packed_->windows(), step = (windows + kJudgedWindows - 1) / kJudgedWindows;
  const int64_t most = std::end(kSparsePanelWidths)[-1];
  std::vector<int32_t> met(a_.corpus.latents, -1);  // the last panel with a latent
  double lists = 0.0, rows = 0.0;
  for (int64_t w = 0; w < windows; w += step) {
    const SparseWindow window = packed_->window(w);
    const int64_t begin = packed_->begin(w), end = begin + window.rows;
    const double entries = static_cast<double>(a_.corpus.indptr[end] - a_.corpus.indptr[begin]);
    std::fill(met.begin(), met.end(), -1);
    for (size_t q = 0; q < queries_.size(); ++q) {
      const int32_t panel = static_cast<int32_t>(static_cast<int64_t>(q) / most);
      if (static_cast<int64_t>(q) % most == 0) rows += entries * kCost.look;
      lists += static_cast<double>(window.rows) * kCost.sum;
      for (const SparseTerm& term : queries_[q]->terms) {
        const uint16_t count = window.count[term.latent];
        const double full = static_cast<double>(window.rows);
        lists += kCost.list + (count == kSparseFull ? full * kCost.full : count * kCost.add);
        if (met[term.latent] == panel) continue;
        met[term.latent] = panel;
        const int64_t left = static_cast<int64_t>(queries_.size()) - panel * most;
        rows += (count == kSparseFull ? full / 2 : count) * (kCost.meet + kCost.weigh * std::min(left, most));
      }
    }
  }
  return rows < lists;
}

// The weights of queries side by side, for the latents that any of them has.
SparseSearch::Side SparseSearch::side(int64_t first, int64_t queries) const {
  Side side{first, queries, 0, std::vector<int32_t>(a_.corpus.latents), {}, 0};
  side.width = *std::find_if(std::begin(kSparsePanelWidths), std::end(kSparsePanelWidths) - 1,
                             [&](int width) { return width >= queries; });
  int32_t places = 1;  // taken, of which the first is nobody's
  for (int64_t q = first; q < first + queries; ++q) {
    for (const SparseTerm& term : queries_[q]->terms) {
      int32_t& place = side.place[term.latent];
      if (place == 0) place = static_cast<int32_t>(places++ * (side.width / kPlaceUnit));
    }
  }
  constexpr int64_t kLine = 64 / sizeof(int16_t);
  side.memory.resize(places * side.width + kLine);
  const uintptr_t past = reinterpret_cast<uintptr_t>(side.memory.data()) % 64;
  side.offset = static_cast<int64_t>((64 - past) % 64 / sizeof(int16_t));
  for (int64_t q = first; q < first + queries; ++q) {
    for (const SparseTerm& term : queries_[q]->terms) {
      side.memory[side.offset + int64_t{side.place[term.latent]} * kPlaceUnit + q - first] = term.weight;
    }
  }
  return side;
}

int64_t SparseSearch::scan_rows(Part& part, int64_t begin, int64_t end) {
  for (const Side& side : sides_) {
    for (int64_t first = begin; first < end; first += kBlock) {
      const int64_t last = std::min(end, first + kBlock);
      const SparseRowsArgs args{a_.corpus,
                                side.panel(),
                                part.sums.data(),
                                part.norm.data(),
                                static_cast<int64_t>(part.places.size()),
                                part.places.data(),
                                part.values.data(),
                                part.words.data()};
      const int64_t bad = sparse_screen().rows(args, first, last);
      if (bad >= 0) return bad;
      const SparseWindow rows{nullptr, nullptr, nullptr, part.norm.data(), last - first};
      if (side.first == 0) offer_unjudged(part, rows, first);
      judge_rows(part, side, rows, first);
    }
  }
  return -1;
}

int64_t SparseSearch::scan_one(Part& part, int64_t begin, int64_t end) {
  part.query.resize(a_.corpus.latents, 0.0f);
  part.norm.resize(kSparseWindow);
  // A query without terms is summed too, for the norms.
  const std::vector<SparseTerm>& terms = queries_.front()->terms;
  // From the units of its weights to those of sums, whose products are divided by 2^15 elsewhere.
  const float factor = static_cast<float>(unit_ / query_unit_);
  for (const SparseTerm& term : terms) part.query[term.latent] = term.weight * factor;
  const int64_t bad =
      sparse_screen().one({a_.corpus, part.query.data(), part.sums.data(), part.norm.data()}, begin, end);
  for (const SparseTerm& term : terms) part.query[term.latent] = 0.0f;
  if (bad >= 0) return bad;
  const SparseWindow window{nullptr, nullptr, nullptr, part.norm.data(), end - begin};
  offer_unjudged(part, window, begin);
  judge(part, 0, window, begin);
  return -1;
}

void SparseSearch::scan_lists(Part& part, int64_t w) {
  const SparseWindow window = packed_->window(w);
  offer_unjudged(part, window, packed_->begin(w));
  for (size_t q = 0; q < queries_.size(); ++q) {
    const std::vector<SparseTerm>& terms = queries_[q]->terms;
    sparse_screen().sum(window, terms.data(), static_cast<int64_t>(terms.size()), part.sums.data());
    judge(part, q, window, packed_->begin(w));
  }
}

int64_t SparseSearch::run(const TopkOutput& out) {
  const int64_t panels = a_.k > 0 ? (a_.queries.rows + tall_ - 1) / tall_ : 0;
  std::atomic<int64_t> bad{-1};
  if (panels > 0) pair_counts.all += a_.queries.rows * a_.corpus.rows;
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
        if (by_rows_) {
          const auto scan = queries_.size() == 1 ? &SparseSearch::scan_one : &SparseSearch::scan_rows;
          const int64_t row = (this->*scan)(*parts_[worker], edges_[window], edges_[window + 1]);
          if (row >= 0) bad = row;
        } else {
          scan_lists(*parts_[worker], window);
        }
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

void set_sparse_way(SparseWay chosen) {
  way = chosen;
}

int64_t sparse_search(const SparseSearchArgs& args, const PackedSparse* packed, const Workers& workers,
                      const TopkOutput& out) {
  const KeepSubnormals keep;
  return SparseSearch(args, packed, workers).run(out);
}

}  // namespace finescope
