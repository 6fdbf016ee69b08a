// The driver of sparse_cosine_topk.
//
// The corpus is met in windows of rows that are turned over: for each latent a list of the rows that hold it,
// with values c / |c| in int16. A query u = q / |q|, in int16 too, is summed over its latents' lists into
// int16 sums s, one per row of the window, in units of A. With roundings d of the rows' values and e of the
// query's,
//   |s / A - <c, u> / |c|| <= |d| * |u + e| + |e| + terms / (2 A) + g,   g = (longest / 8 + 2 * terms + 64) *
//   2^-24,
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
#include <cmath>
#include <cstring>

#include "cpu/sparse_search/search.h"

namespace finescope {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kFewQueries = 2;  // sooner summed over rows as they are than over lists still to be made
constexpr int64_t kSample = 1024;   // hits by which it is seen which are the best

double half_to_double(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = fraction ? std::numeric_limits<double>::quiet_NaN() : kInfinity;
  } else {
    magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

// float16 has few enough values for a table, which the exact loops need: ldexp is a call.
const double* half_table() {
  static const std::vector<double> table = [] {
    std::vector<double> values(1 << 16);
    for (int bits = 0; bits < 1 << 16; ++bits) values[bits] = half_to_double(static_cast<uint16_t>(bits));
    return values;
  }();
  return table.data();
}

struct Half {
  const double* table = half_table();
  double operator()(uint16_t bits) const { return table[bits]; }
};
struct Brain {
  double operator()(uint16_t bits) const {
    const uint32_t word = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }
};
struct Same {
  double operator()(double value) const { return value; }
};

// Call body(index pointer, value pointer, conversion) with the types of the rows.
template <class I, class Body>
auto with_values(const Csr& rows, const I* indices, Body body) {
  switch (rows.dtype) {
    case DType::f32:
      return body(indices, static_cast<const float*>(rows.values), Same());
    case DType::f64:
      return body(indices, static_cast<const double*>(rows.values), Same());
    case DType::bf16:
      return body(indices, static_cast<const uint16_t*>(rows.values), Brain());
    default:
      return body(indices, static_cast<const uint16_t*>(rows.values), Half());
  }
}
template <class Body>
auto with_types(const Csr& rows, Body body) {
  switch (rows.index_type) {
    case IndexType::u16:
      return with_values(rows, static_cast<const uint16_t*>(rows.indices), body);
    case IndexType::i32:
      return with_values(rows, static_cast<const int32_t*>(rows.indices), body);
    default:
      return with_values(rows, static_cast<const int64_t*>(rows.indices), body);
  }
}

float down(double x) {
  const float f = static_cast<float>(x);
  return static_cast<double>(f) > x ? std::nextafter(f, -std::numeric_limits<float>::infinity()) : f;
}

bool better(const SparseCandidate& a, const SparseCandidate& b) {
  return a.low > b.low || (a.low == b.low && a.row < b.row);
}

int64_t longest(const Csr& rows) {
  int64_t most = 0;
  for (int64_t n = 0; n < rows.rows; ++n) most = std::max(most, rows.indptr[n + 1] - rows.indptr[n]);
  return most;
}

}  // namespace

const SparseScreen& sparse_screen() {
  static const Variants<SparseScreen> variants = {{FINESCOPE_VARIANTS(sparse_screen)}};
  return variants.active();
}

double sparse_norm(const Csr& rows, int64_t row) {
  return with_types(rows, [&](const auto*, const auto* values, auto convert) {
    double sum = 0.0;
    for (int64_t i = rows.indptr[row]; i < rows.indptr[row + 1]; ++i) {
      const double v = convert(values[i]);
      sum += v * v;
    }
    return std::sqrt(sum);
  });
}

ExactSparse::ExactSparse(const SparseSearchArgs& args) : a_(args), dense_(args.corpus.latents, 0.0) {}

void ExactSparse::check(int64_t row) const {
  with_types(a_.corpus, [&](const auto* indices, const auto*, auto) {
    bool bad = false;
    for (int64_t i = a_.corpus.indptr[row]; i < a_.corpus.indptr[row + 1]; ++i) {
      bad |= static_cast<uint64_t>(int64_t{indices[i]}) >= static_cast<uint64_t>(a_.corpus.latents);
    }
    if (bad) throw SparseRowError{row};
  });
}

void ExactSparse::load(int64_t q, double norm) {
  if (q == loaded_) return;
  with_types(a_.queries, [&](const auto* indices, const auto* values, auto convert) {
    const int64_t* indptr = a_.queries.indptr;
    if (loaded_ >= 0) {
      for (int64_t i = indptr[loaded_]; i < indptr[loaded_ + 1]; ++i) dense_[indices[i]] = 0.0;
    }
    for (int64_t i = indptr[q]; i < indptr[q + 1]; ++i) dense_[indices[i]] = convert(values[i]);
  });
  loaded_ = q;
  norm_ = norm;
}

double ExactSparse::score(int64_t row, bool* finite) const {
  if (a_.unread) check(row);
  return with_types(a_.corpus, [&](const auto* indices, const auto* values, auto convert) {
    double dot = 0.0, square = 0.0;
    for (int64_t i = a_.corpus.indptr[row]; i < a_.corpus.indptr[row + 1]; ++i) {
      const double v = convert(values[i]);
      dot += dense_[indices[i]] * v;
      square += v * v;
    }
    *finite = std::isfinite(square);
    if (!a_.cosine) return dot;
    const double norms = norm_ * std::sqrt(square);
    return norms > 0.0 ? dot / norms : 0.0;
  });
}

// What one part of the work has found for the queries of the panel.
struct SparseSearch::Part {
  Part(const SparseSearchArgs& args, bool turns) : exact(args) {
    if (turns) turner = std::make_unique<SparseTurner>(args.corpus);
  }
  std::vector<std::vector<SparseCandidate>> found;
  std::vector<int16_t> sums;
  std::vector<SparseHit> hits;
  ExactSparse exact;
  std::unique_ptr<SparseTurner> turner;
  std::vector<float> query, norm;  // for sums without lists
};

SparseSearch::SparseSearch(const SparseSearchArgs& args, const PackedSparse* packed)
    : a_(args), packed_(packed) {
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

SparseSearch::~SparseSearch() = default;

void SparseSearch::prepare(Query& query, int64_t q) {
  query.norm = sparse_norm(a_.queries, q);
  query.dead = !std::isfinite(query.norm);
  query.threshold = a_.min_score - std::abs(a_.min_score) * 0x1p-22 - 1e-40;
  if (std::isnan(query.threshold)) query.threshold = -kInfinity;
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
    query.error = kInfinity;
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

void SparseSearch::begin(int64_t panel, int64_t parts) {
  first_ = first(panel);
  next_ = 0;
  if (packed_ == nullptr && !direct_) held_.assign(a_.corpus.latents, 0);
  queries_.clear();
  for (int64_t q = 0; q < count(panel); ++q) {
    queries_.push_back(std::make_unique<Query>());
    prepare(*queries_.back(), first_ + q);
  }
  while (static_cast<int64_t>(parts_.size()) < parts)
    parts_.push_back(std::make_unique<Part>(a_, packed_ == nullptr && !direct_));
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

// What a row's sum has to reach for its upper bound to reach the threshold.
SparseTest SparseSearch::test(const Query& query) const {
  const double threshold = query.threshold.load(std::memory_order_relaxed) / query.scale;
  if (a_.cosine) {
    const double least = std::ceil((threshold - query.error) * unit_ - 1e-3);
    return {true, static_cast<int32_t>(std::clamp(least, -40000.0, 40000.0)), 0.0f, 0.0f};
  }
  const double bound = std::min(threshold, 1e30) * unit_;
  const float error = static_cast<float>(query.error * unit_ * (1.0 + 0x1p-20) + 1e-3);
  return {
      false, 0, error,
      threshold < -1e30 ? -std::numeric_limits<float>::infinity() : down(bound - std::abs(bound) * 0x1p-20)};
}

int64_t SparseSearch::scan(int64_t index) {
  Part& part = *parts_[index];
  for (int64_t w = next_++; w < windows(); w = next_++) {
    if (packed_ != nullptr) {
      screen(part, packed_->window(w), packed_->begin(w));
      continue;
    }
    const int64_t bad = direct_ ? scan_direct(part, edges_[w], edges_[w + 1])
                                : part.turner->count(edges_[w], edges_[w + 1], held_.data());
    if (bad >= 0) return bad;
    if (!direct_) screen(part, part.turner->window(), edges_[w]);
  }
  return -1;
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

void SparseSearch::offer_unjudged(Part& part, const SparseWindow& window, int64_t begin) {
  for (int64_t row = 0; row < window.rows; ++row) {
    if (!std::isnan(window.norm[row]) || !std::isfinite(sparse_norm(a_.corpus, begin + row))) continue;
    for (size_t q = 0; q < queries_.size(); ++q) {
      if (!queries_[q]->dead && !queries_[q]->zero && allowed(*queries_[q], begin + row)) {
        offer(part, q, {-kInfinity, kInfinity, begin + row});
      }
    }
  }
}

void SparseSearch::screen(Part& part, const SparseWindow& window, int64_t begin) {
  offer_unjudged(part, window, begin);
  for (size_t q = 0; q < queries_.size(); ++q) {
    const std::vector<SparseTerm>& terms = queries_[q]->terms;
    sparse_screen().sum(window, terms.data(), static_cast<int64_t>(terms.size()), part.sums.data());
    judge(part, q, window, begin);
  }
}

// The sums of a window for one query are there: see which rows are candidates.
void SparseSearch::judge(Part& part, int64_t q, const SparseWindow& window, int64_t begin) {
  const Query& query = *queries_[q];
  if (query.dead || query.zero) return;
  if (std::isinf(query.error)) {
    for (int64_t row = 0; row < window.rows; ++row) {
      if (std::isnan(window.norm[row]) || !allowed(query, begin + row)) continue;
      offer(part, q, {-kInfinity, kInfinity, begin + row});
    }
    return;
  }
  take(part, q, window, begin, sparse_screen().hits(window, part.sums.data(), test(query), part.hits.data()));
}

// Offer the rows that were hit. Where they are many, as in the first window, when nothing is known yet, those
// that look best go first: the threshold they give rules out most of the others.
void SparseSearch::take(Part& part, int64_t q, const SparseWindow& window, int64_t begin, int64_t hits) {
  const Query& query = *queries_[q];
  const auto strength = [&](const SparseHit& hit) {
    return a_.cosine ? static_cast<float>(hit.sum) : static_cast<float>(hit.sum) * window.norm[hit.row];
  };
  const auto put = [&](const SparseHit& hit) {
    const float norm = window.norm[hit.row];
    if (std::isnan(norm) || !allowed(query, begin + hit.row)) return;
    const double scale = a_.cosine ? query.scale : query.scale * static_cast<double>(norm);
    const double cosine = hit.sum / unit_;
    offer(part, q, {(cosine - query.error) * scale, (cosine + query.error) * scale, begin + hit.row});
  };
  float split = -std::numeric_limits<float>::infinity();
  if (hits > capacity_) {
    std::vector<float> sample;
    for (int64_t i = 0; i < kSample; ++i) sample.push_back(strength(part.hits[i * hits / kSample]));
    const int64_t place = std::min(kSample - 1, 2 * std::min(a_.k, hits) * kSample / hits + 4);
    std::nth_element(sample.begin(), sample.begin() + place, sample.end(), std::greater<float>());
    split = sample[place];
    for (int64_t i = 0; i < hits; ++i) {
      if (strength(part.hits[i]) >= split) put(part.hits[i]);
    }
    if (static_cast<int64_t>(part.found[q].size()) >= std::min(a_.k, a_.corpus.rows)) shrink(part, q);
  }
  for (int64_t i = 0; i < hits; ++i) {
    if (!std::isinf(split) && strength(part.hits[i]) >= split) continue;
    put(part.hits[i]);
  }
}

void SparseSearch::offer(Part& part, int64_t q, const SparseCandidate& candidate) {
  if (candidate.high < queries_[q]->threshold.load(std::memory_order_relaxed)) return;
  std::vector<SparseCandidate>& found = part.found[q];
  found.push_back(candidate);
  if (static_cast<int64_t>(found.size()) >= capacity_) shrink(part, q);
}

// Raise the threshold to the k-th best lower bound and drop what it rules out. If the bounds cannot tell
// enough candidates apart (duplicates, say), replace them by exact scores and keep k.
void SparseSearch::shrink(Part& part, int64_t q) {
  std::vector<SparseCandidate>& found = part.found[q];
  Query& query = *queries_[q];
  const int64_t k = std::min(a_.k, a_.corpus.rows);
  const auto raise = [&] {
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), better);
    const double kth = found[k - 1].low;
    double known = query.threshold.load();
    while (kth > known && !query.threshold.compare_exchange_weak(known, kth)) {
    }
    const double threshold = std::max(kth, known);
    found.erase(std::remove_if(found.begin(), found.end(),
                               [&](const SparseCandidate& c) { return c.high < threshold; }),
                found.end());
  };
  raise();
  if (static_cast<int64_t>(found.size()) <= capacity_ / 2) return;
  part.exact.load(first_ + q, query.norm);
  for (SparseCandidate& c : found) {
    bool finite;
    c.low = c.high = part.exact.score(c.row, &finite);
  }
  std::sort(found.begin(), found.end(), better);
  if (static_cast<int64_t>(found.size()) > k) found.resize(k);
  if (static_cast<int64_t>(found.size()) == k) raise();
}

std::vector<SparseCandidate> SparseSearch::zeros(const Query& query) const {
  std::vector<SparseCandidate> found;
  for (int64_t row = 0; row < a_.corpus.rows && static_cast<int64_t>(found.size()) < a_.k; ++row) {
    if (allowed(query, row) && std::isfinite(sparse_norm(a_.corpus, row))) found.push_back({0.0, 0.0, row});
  }
  return found;
}

std::vector<SparseCandidate> SparseSearch::finish(int64_t q, ExactSparse& exact) const {
  const Query& query = *queries_[q];
  if (query.dead || a_.k == 0) return {};
  if (query.zero) return zeros(query);
  std::vector<SparseCandidate> all;
  for (const auto& part : parts_) all.insert(all.end(), part->found[q].begin(), part->found[q].end());
  const size_t k = static_cast<size_t>(std::min(a_.k, a_.corpus.rows));
  if (all.size() > k) {
    std::nth_element(all.begin(), all.begin() + static_cast<int64_t>(k - 1), all.end(), better);
    const double threshold = all[k - 1].low;
    all.erase(
        std::remove_if(all.begin(), all.end(), [&](const SparseCandidate& c) { return c.high < threshold; }),
        all.end());
  }
  exact.load(first_ + q, query.norm);
  std::vector<SparseCandidate> kept;
  for (const SparseCandidate& c : all) {
    bool finite;
    const double score = exact.score(c.row, &finite);
    if (finite) kept.push_back({score, score, c.row});
  }
  std::sort(kept.begin(), kept.end(), better);
  if (kept.size() > k) kept.resize(k);
  return kept;
}

}  // namespace finescope
