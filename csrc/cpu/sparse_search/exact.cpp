#include "cpu/sparse_search/exact.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>

#include "cpu/subnormals.h"

namespace finescope {
namespace {

double half_to_double(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else {
    magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace

// float16 has few enough values for a table, which the exact loops need: ldexp is a call.
const double* half_table() {
  static const std::vector<double> table = [] {
    std::vector<double> values(1 << 16);
    for (int bits = 0; bits < 1 << 16; ++bits) values[bits] = half_to_double(static_cast<uint16_t>(bits));
    return values;
  }();
  return table.data();
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

int64_t sparse_pair_scores(const SparseSearchArgs& a, const int64_t* ids, const Workers& workers,
                           double* out) {
  const KeepSubnormals keep;
  std::vector<std::unique_ptr<ExactSparse>> exact(static_cast<size_t>(workers.threads));
  std::atomic<int64_t> bad{-1};
  for_each(workers, a.queries.rows, [&](int64_t q, int worker) {
    if (!exact[worker]) exact[worker] = std::make_unique<ExactSparse>(a);
    const double norm = sparse_norm(a.queries, q);
    exact[worker]->load(q, norm);
    try {
      for (int64_t i = q * a.k; i < (q + 1) * a.k; ++i) {
        bool finite = false;
        const double score = ids[i] < 0 ? 0.0 : exact[worker]->score(ids[i], &finite);
        out[i] = finite && std::isfinite(norm) ? score : -std::numeric_limits<double>::infinity();
      }
    } catch (const SparseRowError& error) {
      bad = error.row;
    }
  });
  return bad;
}

}  // namespace finescope
