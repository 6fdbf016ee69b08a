// Which rows may be among the best of a query: what the screen's sums and the threshold say, and what exact scores
// decide in the end.
#include <algorithm>
#include <cmath>
#include <functional>

#include "cpu/counts.h"
#include "cpu/sparse_search/panel.h"

namespace finescope {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kSample = 1024;  // hits by which it is seen which are the best

float down(double x) {
  const float f = static_cast<float>(x);
  return static_cast<double>(f) > x ? std::nextafter(f, -std::numeric_limits<float>::infinity()) : f;
}

bool better(const SparseCandidate& a, const SparseCandidate& b) {
  return a.low > b.low || (a.low == b.low && a.row < b.row);
}

}  // namespace

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

// The sums of a window for one query are there: see which rows are candidates.
void SparseSearch::judge(Part& part, int64_t q, const SparseWindow& window, int64_t begin) {
  const Query& query = *queries_[q];
  if (query.dead || query.zero) return;
  if (std::isinf(query.error)) return offer_all(part, q, window, begin);
  take(part, q, window, begin, sparse_screen().hits(window, part.sums.data(), test(query), part.hits.data()));
}

void SparseSearch::offer_all(Part& part, int64_t q, const SparseWindow& window, int64_t begin) {
  for (int64_t row = 0; row < window.rows; ++row) {
    if (std::isnan(window.norm[row]) || !allowed(*queries_[q], begin + row)) continue;
    offer(part, q, {-kInfinity, kInfinity, begin + row});
  }
}

// The sums of a block of rows for queries side by side are there.
void SparseSearch::judge_rows(Part& part, const Side& side, const SparseWindow& rows, int64_t begin) {
  int16_t least[std::end(kSparsePanelWidths)[-1]];
  float error[std::size(least)], bound[std::size(least)];
  // Sums of queries that have no terms, and of columns without a query, are 0 and reach neither of these.
  std::fill(std::begin(least), std::end(least), INT16_MAX);
  std::fill(std::begin(error), std::end(error), 0.0f);
  std::fill(std::begin(bound), std::end(bound), std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < side.queries; ++i) {
    const Query& query = *queries_[side.first + i];
    if (query.dead || query.zero) continue;
    if (std::isinf(query.error)) {
      offer_all(part, side.first + i, rows, begin);
      continue;
    }
    const SparseTest one = test(query);
    least[i] = static_cast<int16_t>(std::clamp<int32_t>(one.least, INT16_MIN, INT16_MAX));
    error[i] = one.error;
    bound[i] = one.bound;
  }
  const int64_t hits =
      sparse_screen().reach(part.sums.data(), rows.norm, rows.rows,
                            {side.width, a_.cosine, least, error, bound}, part.panel_hits.data());
  for (int64_t i = 0; i < hits; ++i) {
    const SparsePanelHit& hit = part.panel_hits[i];
    const int64_t q = side.first + hit.query;
    if (hit.query >= side.queries || std::isinf(queries_[q]->error)) continue;
    put(part, q, {hit.row, hit.sum}, rows, begin);
  }
}

// Offer a row that passed the test.
void SparseSearch::put(Part& part, int64_t q, const SparseHit& hit, const SparseWindow& window,
                       int64_t begin) {
  const Query& query = *queries_[q];
  const float norm = window.norm[hit.row];
  if (std::isnan(norm) || !allowed(query, begin + hit.row)) return;
  const double scale = a_.cosine ? query.scale : query.scale * static_cast<double>(norm);
  const double cosine = hit.sum / unit_;
  offer(part, q, {(cosine - query.error) * scale, (cosine + query.error) * scale, begin + hit.row});
}

// Offer the rows that were hit. Where they are many, as in the first window, when nothing is known yet, those
// that look best go first: the threshold they give rules out most of the others.
void SparseSearch::take(Part& part, int64_t q, const SparseWindow& window, int64_t begin, int64_t hits) {
  const auto strength = [&](const SparseHit& hit) {
    return a_.cosine ? static_cast<float>(hit.sum) : static_cast<float>(hit.sum) * window.norm[hit.row];
  };
  float split = -std::numeric_limits<float>::infinity();
  if (hits > capacity_) {
    std::vector<float> sample;
    for (int64_t i = 0; i < kSample; ++i) sample.push_back(strength(part.hits[i * hits / kSample]));
    const int64_t place = std::min(kSample - 1, 2 * std::min(a_.k, hits) * kSample / hits + 4);
    std::nth_element(sample.begin(), sample.begin() + place, sample.end(), std::greater<float>());
    split = sample[place];
    for (int64_t i = 0; i < hits; ++i) {
      if (strength(part.hits[i]) >= split) put(part, q, part.hits[i], window, begin);
    }
    if (static_cast<int64_t>(part.found[q].size()) >= std::min(a_.k, a_.corpus.rows)) shrink(part, q);
  }
  for (int64_t i = 0; i < hits; ++i) {
    if (!std::isinf(split) && strength(part.hits[i]) >= split) continue;
    put(part, q, part.hits[i], window, begin);
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
  count_exact(static_cast<int64_t>(found.size()));
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
  count_exact(static_cast<int64_t>(all.size()));
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
