// The driver of sparse_cosine_topk.
//
// Queries u = q / |q| are rounded to a panel p (bf16, or float32 for a single query). For a corpus row c the
// screen's sum s obeys
//   |s - <c, u>| <= |c| * (|p - u| + g),   g = (2 * terms + longest / 8 + 64) * 2^-24,
// where |p - u| is measured, and g covers: rounding of the values and of at most `terms` multiply-adds that
// are not by zero, in float32, and the relative error of the float32 norm, of the threshold and of these
// bounds. Sums of squares are used only between 1e-24 and 1e36, where nothing that matters under- or
// overflows.
//
// A row is a candidate for a query if its upper bound reaches the threshold: the k-th best lower bound of
// distinct rows so far, shared by all threads. Which rows become candidates depends on timing; the result
// does not, since every row that could be among the best is one, and candidates are ordered by their exact
// scores.
#include "cpu/sparse_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace finescope {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kBlock = 128;  // rows between looks at the shared thresholds

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

uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof(u));
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
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

SparseScreen sparse_screen() {
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

// What one part of the corpus has found for the queries of the panel.
struct SparseSearch::Part {
  explicit Part(const SparseSearchArgs& args) : exact(args) {}
  std::vector<std::vector<SparseCandidate>> found;
  std::vector<double> threshold;
  std::vector<float> slope, offset;
  ExactSparse exact;
};

SparseSearch::SparseSearch(const SparseSearchArgs& args) : a_(args) {
  longest_corpus_ = longest(a_.corpus);
  longest_query_ = longest(a_.queries);
  width_ = a_.queries.rows <= 2 ? 1 : a_.queries.rows <= 32 ? 32 : 64;
  const int64_t k = std::min(a_.k, a_.corpus.rows);
  capacity_ = std::max<int64_t>(4 * k, 1024);
  if (width_ == 1) {
    single_.assign(a_.corpus.latents, 0.0f);
  } else {
    panel_.assign(a_.corpus.latents * width_, 0);
  }
}

SparseSearch::~SparseSearch() = default;

void SparseSearch::begin(int64_t panel, int64_t parts) {
  // The panel before is undone entry by entry: clearing it whole would cost more than many a search.
  const auto each = [&](int64_t q, auto put) {
    with_types(a_.queries, [&](const auto* indices, const auto* values, auto convert) {
      for (int64_t i = a_.queries.indptr[q]; i < a_.queries.indptr[q + 1]; ++i) {
        put(static_cast<int64_t>(indices[i]), convert(values[i]));
      }
    });
  };
  const auto place = [&](int64_t latent, int64_t q) -> uint16_t& {
    const int64_t group = q / 32 * 32, within = q % 32;
    return panel_[latent * width_ + group + 2 * (within % 16) + within / 16];
  };
  if (queries_) {
    for (int64_t q = 0; q < width_ && first_ + q < a_.queries.rows; ++q) {
      each(first_ + q, [&](int64_t latent, double) {
        if (width_ == 1) {
          single_[latent] = 0.0f;
        } else {
          place(latent, q) = 0;
        }
      });
    }
  }
  first_ = first(panel);
  const int64_t n = count(panel);
  queries_ = std::make_unique<Query[]>(width_);
  const double terms = static_cast<double>(std::min(longest_corpus_, longest_query_));
  const double rounding = (2.0 * terms + static_cast<double>(longest_corpus_) / 8.0 + 64.0) * 0x1p-24;
  for (int64_t q = 0; q < n; ++q) {
    Query& query = queries_[q];
    query.norm = sparse_norm(a_.queries, first_ + q);
    query.dead = !std::isfinite(query.norm);
    query.zero = true;
    each(first_ + q, [&](int64_t, double v) { query.zero = query.zero && v == 0.0; });
    if (a_.exclude != nullptr) {
      const int64_t* rows = a_.exclude + (first_ + q) * a_.E;
      query.excluded.assign(rows, rows + a_.E);
      std::sort(query.excluded.begin(), query.excluded.end());
    }
    query.threshold = a_.min_score - std::abs(a_.min_score) * 0x1p-22 - 1e-40;
    if (std::isnan(query.threshold)) query.threshold = -kInfinity;
    if (query.dead || query.zero || !(query.norm > 1e-100 && query.norm < 1e100)) {
      // Its exact scores may still be ordinary, or, for zero, all alike: no screen.
      query.error = kInfinity;
      continue;
    }
    double square = 0.0;
    each(first_ + q, [&](int64_t latent, double v) {
      const double u = v / query.norm;
      double rounded;
      if (width_ == 1) {
        single_[latent] = static_cast<float>(u);
        rounded = single_[latent];
      } else {
        place(latent, q) = to_bf16(static_cast<float>(u));
        rounded = Brain()(place(latent, q));
      }
      square += (rounded - u) * (rounded - u);
    });
    query.scale = a_.cosine ? 1.0 : query.norm;
    query.error = std::sqrt(square) * 1.0001 + rounding + 1e-12;
  }
  parts_.clear();
  for (int64_t p = 0; p < parts; ++p) {
    parts_.push_back(std::make_unique<Part>(a_));
    Part& part = *parts_.back();
    part.found.resize(n);
    part.threshold.assign(n, -kInfinity);
    // Queries past the last one are never hit.
    part.slope.assign(width_, 0.0f);
    part.offset.assign(width_, std::numeric_limits<float>::infinity());
  }
}

bool SparseSearch::allowed(const Query& query, int64_t row) const {
  if (a_.mask != nullptr && !a_.mask[row]) return false;
  return !std::binary_search(query.excluded.begin(), query.excluded.end(), row);
}

// The float32 line norm * slope + offset below which a sum cannot reach the threshold.
void SparseSearch::set_threshold(const Query& query, int64_t q, float* slope, float* offset) const {
  const double threshold = query.threshold.load(std::memory_order_relaxed) / query.scale;
  if (query.dead || query.zero) return;
  if (std::isinf(query.error) || threshold < -1e30) {
    slope[q] = 0.0f;
    offset[q] = -std::numeric_limits<float>::infinity();
  } else if (a_.cosine) {
    slope[q] = down(std::min(threshold, 1e30) - query.error);
    // A row without entries has sum and norm 0: a hit only if 0 is enough. Beside any other row this
    // vanishes.
    offset[q] = slope[q] > 0.0f ? 1e-30f : 0.0f;
  } else {
    slope[q] = down(-query.error);
    offset[q] = down(std::min(threshold, 1e30) - std::abs(threshold) * 0x1p-20);
  }
}

int64_t SparseSearch::scan(int64_t index, int64_t begin, int64_t end) {
  Part& part = *parts_[index];
  std::vector<SparseHit> hits(kBlock * width_);
  std::vector<int32_t> latents(longest_corpus_ + 16);
  std::vector<float> values(longest_corpus_ + 16);
  const void* panel = width_ == 1 ? static_cast<const void*>(single_.data()) : panel_.data();
  // The kernels compare whole registers of thresholds.
  std::vector<float> slope(64, 0.0f), offset(64, std::numeric_limits<float>::infinity());
  const SparseScreenArgs args{a_.corpus,    panel,         static_cast<int32_t>(width_),
                              slope.data(), offset.data(), latents.data(),
                              values.data()};
  const SparseScreen screen = sparse_screen();
  for (int64_t row = begin; row < end; row += kBlock) {
    for (size_t q = 0; q < part.found.size(); ++q) {
      set_threshold(queries_[q], static_cast<int64_t>(q), slope.data(), offset.data());
    }
    const int64_t n = screen(args, row, std::min(row + kBlock, end), hits.data());
    if (n < 0) return -1 - n;
    for (int64_t h = 0; h < n; ++h) take(part, hits[h]);
  }
  return -1;
}

void SparseSearch::take(Part& part, const SparseHit& hit) {
  if (hit.query < 0) {
    if (!std::isfinite(sparse_norm(a_.corpus, hit.row))) return;
    for (size_t q = 0; q < part.found.size(); ++q) {
      if (queries_[q].dead || queries_[q].zero || !allowed(queries_[q], hit.row)) continue;
      offer(part, static_cast<int64_t>(q), {-kInfinity, kInfinity, hit.row});
    }
    return;
  }
  const Query& query = queries_[hit.query];
  if (!allowed(query, hit.row)) return;
  if (std::isinf(query.error) || std::isnan(hit.sum)) {
    offer(part, hit.query, {-kInfinity, kInfinity, hit.row});
    return;
  }
  const double norm = a_.cosine ? 1.0 : static_cast<double>(hit.norm);
  const double sum = a_.cosine ? (hit.norm > 0.0f ? hit.sum / static_cast<double>(hit.norm) : 0.0) : hit.sum;
  const double error = norm * query.error;
  offer(part, hit.query, {(sum - error) * query.scale, (sum + error) * query.scale, hit.row});
}

void SparseSearch::offer(Part& part, int64_t q, const SparseCandidate& candidate) {
  if (candidate.high < queries_[q].threshold.load(std::memory_order_relaxed)) return;
  std::vector<SparseCandidate>& found = part.found[q];
  found.push_back(candidate);
  if (static_cast<int64_t>(found.size()) >= capacity_) shrink(part, q);
}

// Raise the threshold to the k-th best lower bound and drop what it rules out. If the bounds cannot tell
// enough candidates apart (duplicates, say), replace them by exact scores and keep k.
void SparseSearch::shrink(Part& part, int64_t q) {
  std::vector<SparseCandidate>& found = part.found[q];
  Query& query = queries_[q];
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

std::vector<SparseCandidate> SparseSearch::finish(int64_t q) const {
  const Query& query = queries_[q];
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
  ExactSparse exact(a_);
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
