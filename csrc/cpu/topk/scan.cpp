// The exact scan: every score in float64. As fast as memory for a row or two, where packing would cost more
// than it saves; and the answer for rows that no screen can separate (ties, magnitudes beyond its range) and
// for float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/counts.h"
#include "cpu/topk/internal.h"

namespace finescope {

void F32Rows::assign(const Matrix& m, int64_t d, int64_t first, int64_t n, const Workers& workers) {
  if (m.dtype == DType::f32 && d % 16 == 0) {
    base_ = static_cast<const float*>(m.data) + first * m.stride;
    stride_ = m.stride;
    return;
  }
  stride_ = round_up(d, 16);
  copy_.resize(static_cast<size_t>(n * stride_));
  base_ = copy_.data();
  const TopkKernels& kernels = topk_kernels();
  for_each(workers, (n + 63) / 64, [&](int64_t task, int) {
    for (int64_t i = task * 64; i < std::min(n, task * 64 + 64); ++i) {
      kernels.to_f32(row_of(m, first + i), m.dtype, d, copy_.data() + i * stride_);
    }
  });
}

std::vector<uint8_t> finite_rows(const Matrix& m, int64_t n, int64_t d, const Workers& workers) {
  const TopkKernels& kernels = topk_kernels();
  std::vector<uint8_t> good(static_cast<size_t>(n));
  for_each(workers, (n + 63) / 64, [&](int64_t task, int) {
    std::vector<float> row(static_cast<size_t>(round_up(d, 16)));
    std::vector<double> wide(static_cast<size_t>(round_up(d, 16)));
    for (int64_t i = task * 64; i < std::min(n, task * 64 + 64); ++i) {
      if (m.dtype == DType::f64) {
        kernels.to_f64(row_of(m, i), m.dtype, d, wide.data());
        const double* rows[1] = {wide.data()};
        double squared;
        kernels.dots_f64(wide.data(), rows, 1, round_up(d, 16), &squared);
        good[i] = std::isfinite(squared);
      } else {
        good[i] = kernels.to_f32(row_of(m, i), m.dtype, d, row.data()) < 0x7f800000u;
      }
    }
  });
  return good;
}

namespace {

template <class T>
void write(const TopkProblem& p, const TopkOutput& out, int64_t b, const Hit* hits, int64_t n) {
  T* score = static_cast<T*>(out.score) + b * p.k;
  int64_t* id = out.id + b * p.k;
  for (int64_t j = 0; j < n; ++j) {
    score[j] = static_cast<T>(hits[j].score);
    id[j] = hits[j].id + p.id_offset;
  }
  if (p.metric != Metric::encode) {
    for (int64_t j = n; j < p.k; ++j) score[j] = -std::numeric_limits<T>::infinity(), id[j] = -1;
    return;
  }
  if (n == p.k) return;
  // At most k latents are taken, so the lowest free ones are below k.
  std::vector<bool> taken(static_cast<size_t>(p.k));
  for (int64_t j = 0; j < n; ++j) {
    if (hits[j].id < p.k) taken[static_cast<size_t>(hits[j].id)] = true;
  }
  int64_t next = 0;
  for (int64_t j = n; j < p.k; ++j, ++next) {
    while (taken[static_cast<size_t>(next)]) ++next;
    score[j] = 0;
    id[j] = next;
  }
}

}  // namespace

void write_row(const TopkProblem& p, const TopkOutput& out, int64_t b, Hit* hits, int64_t n) {
  const int64_t kept = std::min(n, p.k);
  if (n > p.k) std::nth_element(hits, hits + p.k, hits + n, Better());
  std::sort(hits, hits + kept, Better());
  if (out.f64) {
    write<double>(p, out, b, hits, kept);
  } else {
    write<float>(p, out, b, hits, kept);
  }
}

void write_bad_row(const TopkProblem& p, const TopkOutput& out, int64_t b) {
  write_row(p, out, b, nullptr, 0);
  if (p.metric != Metric::encode) return;
  for (int64_t j = b * p.k; j < (b + 1) * p.k; ++j) {
    if (out.f64) {
      static_cast<double*>(out.score)[j] = std::numeric_limits<double>::quiet_NaN();
    } else {
      static_cast<float*>(out.score)[j] = std::numeric_limits<float>::quiet_NaN();
    }
    out.id[j] = j - b * p.k;
  }
}

namespace {

// The best k of a stream of hits: a buffer of twice that, halved when full.
class Best {
 public:
  Best(int64_t k, double floor) : k_(static_cast<size_t>(k)), threshold_(floor) {}

  // Scores below the k-th best so far, and those at or below the floor, are not offered.
  bool wants(double score) const { return full_ ? score >= threshold_ : score > threshold_; }
  void offer(double score, int64_t id) {
    hits_.push_back({score, id});
    if (hits_.size() < 2 * k_ + 64) return;
    std::nth_element(hits_.begin(), hits_.begin() + static_cast<int64_t>(k_) - 1, hits_.end(), Better());
    hits_.resize(k_);
    threshold_ = hits_.back().score;
    full_ = true;
  }
  std::vector<Hit>& hits() { return hits_; }

 private:
  size_t k_;
  double threshold_;
  bool full_ = false;
  std::vector<Hit> hits_;
};

// T is float where every input is at most float32 wide, double otherwise.
template <class T>
struct Scanner {
  const TopkProblem& p;
  const int64_t* rows;
  const TopkKernels& kernels = topk_kernels();
  int64_t stride = round_up(p.d, 16);
  std::atomic<bool> finite{true};

  static constexpr int64_t kFewRows = 4, kAtOnce = 8;

  struct Scratch {
    std::vector<T> x, w;
    std::vector<double> wide, few, dot, norm;
    std::vector<const T*> pointer;
  };

  // Rows rows[begin..begin+n) of x against rows low..high of w.
  void run(int64_t begin, int64_t n, int64_t low, int64_t high, Best* best, Scratch& s) {
    s.x.resize(static_cast<size_t>(n * stride));
    s.w.resize(static_cast<size_t>(stride));
    s.wide.resize(static_cast<size_t>(stride));
    s.dot.resize(static_cast<size_t>(n));
    s.norm.assign(static_cast<size_t>(n), 0.0);
    s.pointer.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      T* row = s.x.data() + i * stride;
      load(kernels, row_of(p.x, rows[begin + i]), p.x.dtype, p.d, row);
      s.pointer[i] = row;
      if (p.metric == Metric::cosine) s.norm[i] = norm_of(row, s);
    }
    if constexpr (sizeof(T) == 4) {
      if (n <= kFewRows && p.w.dtype == DType::f32 && p.d % 16 == 0)
        return run_few(begin, n, low, high, best, s);
    }
    const T* w_row = s.w.data();
    for (int64_t f = low; f < high; ++f) {
      const void* stored = row_of(p.w, f);
      kernels.to_f64(stored, p.w.dtype, p.d, s.wide.data());
      double w_norm = 0.0;
      if (p.metric == Metric::cosine || sizeof(T) == 8) {
        load(kernels, stored, p.w.dtype, p.d, s.w.data());
        dots(kernels, s.wide.data(), &w_row, 1, stride, &w_norm);
        w_norm = std::sqrt(w_norm);
      }
      dots(kernels, s.wide.data(), s.pointer.data(), n, stride, s.dot.data());
      consider(begin, n, f, w_norm, s.dot.data(), 1, best, s);
    }
  }

  // With few rows of x these are the widened side, and float32 rows of w are read where they are.
  void run_few(int64_t begin, int64_t n, int64_t low, int64_t high, Best* best, Scratch& s) {
    std::vector<double>& x = s.few;
    x.resize(static_cast<size_t>(n * stride));
    for (int64_t i = 0; i < n; ++i) kernels.to_f64(s.pointer[i], DType::f32, p.d, x.data() + i * stride);
    const float* w_rows[kAtOnce];
    double dot[kFewRows * kAtOnce], squared[kAtOnce] = {};
    for (int64_t f = low; f < high; f += kAtOnce) {
      const int64_t m = std::min(kAtOnce, high - f);
      for (int64_t j = 0; j < m; ++j) w_rows[j] = reinterpret_cast<const float*>(row_of(p.w, f + j));
      for (int64_t i = 0; i < n; ++i) {
        // The first row of x brings the rows of w into cache, and their norms with it.
        double* norms = i == 0 && p.metric == Metric::cosine ? squared : nullptr;
        if (i == 0) {
          kernels.stream_dots(x.data(), w_rows, m, stride, dot, norms);
        } else {
          kernels.dots_f32(x.data() + i * stride, w_rows, m, stride, dot + i * kAtOnce);
        }
      }
      for (int64_t j = 0; j < m; ++j)
        consider(begin, n, f + j, std::sqrt(squared[j]), dot + j, kAtOnce, best, s);
    }
  }

  // The dots of row f of w with n rows of x.
  void consider(int64_t begin, int64_t n, int64_t f, double w_norm, const double* dot, int64_t step,
                Best* best, Scratch& s) {
    // A row of w with a NaN or an infinity makes every dot of it one; finite float32 rows never do. float64
    // rows can be too large, which their norm shows.
    if (!std::isfinite(dot[0]) || !std::isfinite(w_norm)) {
      if (sizeof(T) == 4 || !std::isfinite(w_norm)) {
        finite = false;
        return;
      }
    }
    if (p.mask && !p.mask[f]) return;
    for (int64_t i = 0; i < n; ++i) {
      const double score = exact_score(p, dot[i * step], f, s.norm[i], w_norm);
      if (best[i].wants(score) && !excluded(p, rows[begin + i], f)) best[i].offer(score, f);
    }
  }

  double norm_of(const T* row, Scratch& s) {
    for (int64_t d = 0; d < stride; ++d) s.wide[d] = static_cast<double>(row[d]);
    double squared;
    dots(kernels, s.wide.data(), &row, 1, stride, &squared);
    return std::sqrt(squared);
  }
};

template <class T>
bool scan_as(const TopkProblem& p, const int64_t* rows, int64_t n, const Workers& workers,
             const TopkOutput& out) {
  if (n == 0) return true;
  Scanner<T> scanner{p, rows};
  // A few rows of x stay in the first-level cache while w streams past. Where that makes too few tasks for
  // the workers, w is split as well.
  const int64_t tall =
      std::clamp<int64_t>((int64_t{16} << 10) / ((scanner.stride + 1) * int64_t{sizeof(T)}), 4, 32);
  const int64_t blocks = (n + tall - 1) / tall;
  int64_t parts = 1;
  if (workers.threads > 1 && blocks < 4 * workers.threads)
    parts = (4 * workers.threads + blocks - 1) / blocks;
  parts = std::max<int64_t>(1, std::min(parts, p.N * p.d / (1 << 15)));
  std::vector<typename Scanner<T>::Scratch> scratch(static_cast<size_t>(workers.threads));
  // Blocks of rows at a time, so that their hits are bounded: 2k + 64 for each row and part.
  const int64_t hits = (2 * p.k + 64) * int64_t{sizeof(Hit)} * parts;
  const int64_t batch = std::max<int64_t>(1, (int64_t{16} << 20) / (hits * tall));
  for (int64_t first = 0; first < blocks; first += batch) {
    const int64_t count = std::min(batch, blocks - first);
    std::vector<Best> best(static_cast<size_t>(count * parts * tall), Best(p.k, p.floor));
    const auto place = [&](int64_t block, int64_t part) {
      return best.data() + (block * parts + part) * tall;
    };
    for_each(workers, count * parts, [&](int64_t task, int worker) {
      const int64_t block = task % count, part = task / count, begin = (first + block) * tall;
      scanner.run(begin, std::min(tall, n - begin), p.N * part / parts, p.N * (part + 1) / parts,
                  place(block, part), scratch[worker]);
    });
    if (p.metric == Metric::encode && !scanner.finite) return false;
    for_each(workers, count, [&](int64_t block, int) {
      for (int64_t i = 0; i < std::min(tall, n - (first + block) * tall); ++i) {
        std::vector<Hit>& merged = place(block, 0)[i].hits();
        for (int64_t part = 1; part < parts; ++part) {
          const std::vector<Hit>& more = place(block, part)[i].hits();
          merged.insert(merged.end(), more.begin(), more.end());
        }
        write_row(p, out, rows[(first + block) * tall + i], merged.data(),
                  static_cast<int64_t>(merged.size()));
      }
    });
  }
  return true;
}

}  // namespace

bool scan(const TopkProblem& p, const int64_t* rows, int64_t n, const Workers& workers,
          const TopkOutput& out) {
  count_exact(n * p.N);
  const bool f64 = p.x.dtype == DType::f64 || p.w.dtype == DType::f64;
  return f64 ? scan_as<double>(p, rows, n, workers, out) : scan_as<float>(p, rows, n, workers, out);
}

}  // namespace finescope
