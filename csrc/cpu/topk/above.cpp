// Latents above thresholds without a screen of packed rows: in float32 over w where it lies, or all exactly.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/counts.h"
#include "cpu/topk/exceed.h"

namespace finescope {
namespace {

// Rows of w between two looks at the dots; a multiple of 3, which block_dots wants.
constexpr int64_t kChunk = 48;
// Rows of x that are looked at together, while a few rows of w are in the first-level cache.
constexpr int64_t kRows = 32;
// Bytes that the entries of such rows take at most.
constexpr int64_t kHitBytes = int64_t{4} << 20;

// T is float where every input is at most float32 wide, double otherwise.
template <class T>
class Above {
 public:
  Above(const ExceedProblem& p, const int64_t* rows, bool screen, ExceedRows* out)
      : p_(p),
        rows_(rows),
        screen_(screen),
        out_(*out),
        in_place_(std::is_same_v<T, float> && p.w.dtype == DType::f32 && p.d % 16 == 0),
        relative_(rounding_of_dots(p.d) + 0x1p-20),
        lost_(static_cast<double>(p.d) * 0x1p-124) {
    if (!screen) return;
    shifted_.resize(static_cast<size_t>(p.N));
    constexpr double kNothing = std::numeric_limits<double>::infinity();  // exceeds it, nor a NaN
    for (int64_t f = 0; f < p.N; ++f) {
      shifted_[f] = p.threshold[f] < kNothing ? shifted_bias(p, f) : -kNothing;
    }
  }

  // False if w is not finite.
  bool run(int64_t n, const Workers& workers) {
    const int64_t tall = std::clamp<int64_t>(kHitBytes / (p_.N * int64_t{sizeof(Hit)}), 4, kRows);
    const int64_t blocks = (n + tall - 1) / tall, threads = workers.threads;
    int64_t parts = 1;
    if (threads > 1 && blocks < 4 * threads) parts = (4 * threads + blocks - 1) / blocks;
    parts = std::clamp<int64_t>(parts, 1, std::max<int64_t>(1, p_.N * p_.d >> 18));
    // Blocks in flight: their entries are bounded.
    const int64_t batch = std::max<int64_t>(1, 2 * threads / parts);
    std::vector<Scratch> scratch(static_cast<size_t>(threads));
    for (int64_t first = 0; first < blocks && finite_; first += batch) {
      const int64_t count = std::min(batch, blocks - first);
      std::vector<std::vector<Hit>> hits(static_cast<size_t>(count * parts * tall));
      const auto place = [&](int64_t block, int64_t part) {
        return hits.data() + (block * parts + part) * tall;
      };
      const auto edge = [&](int64_t block) { return n * (first + block) / blocks; };
      for_each(workers, count * parts, [&](int64_t task, int worker) {
        const int64_t block = task / parts, part = task % parts;
        look(edge(block), edge(block + 1), p_.N * part / parts, p_.N * (part + 1) / parts, scratch[worker],
             place(block, part));
      });
      for_each(workers, count, [&](int64_t block, int) {
        ExceedRows::Piece piece;
        size_t entries = 0;
        for (int64_t at = 0; at < parts * tall; ++at) entries += place(block, 0)[at].size();
        piece.reserve(static_cast<size_t>(edge(block + 1) - edge(block)), entries, p_.f64);
        for (int64_t i = edge(block); i < edge(block + 1); ++i) {
          std::vector<Hit>& row = place(block, 0)[i - edge(block)];
          for (int64_t part = 1; part < parts; ++part) {
            const std::vector<Hit>& more = place(block, part)[i - edge(block)];
            row.insert(row.end(), more.begin(), more.end());
          }
          piece.add(p_, rows_[i], row);
          std::vector<Hit>().swap(row);
        }
        out_.take(std::move(piece));
      });
    }
    for (const Scratch& s : scratch) count_exact(s.exact);
    return finite_;
  }

 private:
  struct Scratch {
    std::vector<T> x, w;
    std::vector<double> wide, of_w, dot, size;
    std::vector<float> quick;
    std::vector<const T*> pointer;
    int64_t exact = 0;  // pairs
  };

  void keep(double dot, int64_t f, std::vector<Hit>& hits) {
    if (p_.exceeds(dot, f)) hits.push_back({dot, f});
  }

  // Rows rows_[begin..end) of x against rows low..high of w; hits by row.
  void look(int64_t begin, int64_t end, int64_t low, int64_t high, Scratch& s, std::vector<Hit>* hits) {
    const int64_t n = end - begin;
    s.x.resize(static_cast<size_t>(n * stride_)), s.pointer.resize(static_cast<size_t>(n));
    s.wide.resize(static_cast<size_t>(n * stride_)), s.size.resize(static_cast<size_t>(n));
    s.dot.resize(static_cast<size_t>(std::max(n, kChunk))), s.of_w.resize(static_cast<size_t>(stride_));
    s.w.resize(static_cast<size_t>(in_place_ ? 0 : kChunk * stride_));
    for (int64_t i = 0; i < n; ++i) {
      const char* stored = row_of(p_.x, rows_[begin + i]);
      T* row = s.x.data() + i * stride_;
      s.pointer[i] = row;
      load(kernels_, stored, p_.x.dtype, p_.d, row);
      kernels_.to_f64(stored, p_.x.dtype, p_.d, s.wide.data() + i * stride_);
      if constexpr (std::is_same_v<T, float>) s.size[i] = std::sqrt(kernels_.squared_norm(row, stride_));
    }
    const T* w[kChunk];
    for (int64_t at = low; at < high && finite_; at += kChunk) {
      const int64_t m = std::min(kChunk, high - at);
      for (int64_t j = 0; j < m; ++j) {
        const char* stored = row_of(p_.w, at + j);
        w[j] = in_place_ ? reinterpret_cast<const T*>(stored) : s.w.data() + j * stride_;
        if (!in_place_) load(kernels_, stored, p_.w.dtype, p_.d, s.w.data() + j * stride_);
      }
      if (!screen_) s.exact += m * n;
      if constexpr (std::is_same_v<T, float>) {
        if (screen_) {
          screened(w, at, m, n, s, hits);
          continue;
        }
        if (n == 1) {
          kernels_.stream_dots(s.wide.data(), w, m, stride_, s.dot.data(), nullptr);
          for (int64_t j = 0; j < m; ++j) take(s.dot.data() + j, 1, at + j, hits);
          continue;
        }
      }
      for (int64_t j = 0; j < m; ++j) all(w[j], at + j, n, s, hits);
    }
  }

  // The exact dots of a row of w with all rows of x.
  void all(const T* w, int64_t f, int64_t n, Scratch& s, std::vector<Hit>* hits) {
    kernels_.to_f64(w, std::is_same_v<T, float> ? DType::f32 : DType::f64, p_.d, s.of_w.data());
    if constexpr (std::is_same_v<T, double>) {
      double squared;
      dots(kernels_, s.of_w.data(), &w, 1, stride_, &squared);
      if (!std::isfinite(squared)) finite_ = false;
    }
    dots(kernels_, s.of_w.data(), s.pointer.data(), n, stride_, s.dot.data());
    take(s.dot.data(), n, f, hits);
  }

  // x is finite: of float32, so is every dot unless w is not.
  void take(const double* dot, int64_t n, int64_t f, std::vector<Hit>* hits) {
    for (int64_t i = 0; i < n; ++i) {
      if (std::is_same_v<T, float> && !std::isfinite(dot[i])) finite_ = false;
      keep(dot[i], f, hits[i]);
    }
  }

  // The dots of m rows of w from `at` on with all rows of x, those that float32 cannot rule out exactly.
  void screened(const float* const* w, int64_t at, int64_t m, int64_t n, Scratch& s, std::vector<Hit>* hits) {
    s.quick.resize(static_cast<size_t>(n * kChunk));
    float square[kChunk];
    double w_size[kChunk];
    kernels_.quick_squares(w, m, stride_, square);
    for (int64_t j = 0; j < m; ++j) {
      w_size[j] = std::sqrt(static_cast<double>(square[j]) * (1.0 + relative_) + lost_) * (1.0 + 0x1p-20);
    }
    kernels_.block_dots(s.pointer.data(), n, w, m, stride_, s.quick.data(), kChunk);
    const float* left[kChunk];
    int32_t place[kChunk];
    for (int64_t i = 0; i < n; ++i) {
      const float* quick = s.quick.data() + i * kChunk;
      int64_t found = 0;
      for (int64_t j = 0; j < m; ++j) {
        const double reach = quick[j] + shifted_[at + j] + relative_ * s.size[i] * w_size[j] + lost_;
        // Written so that a NaN, and what overflowed on the way, passes.
        const bool below = reach < 0.0 && std::fabs(quick[j]) < 0x1p120f;
        place[found] = static_cast<int32_t>(j), left[found] = w[j];
        found += !below;
      }
      if (found == 0) continue;
      s.exact += found;
      kernels_.dots_f32(s.wide.data() + i * stride_, left, found, stride_, s.dot.data());
      for (int64_t c = 0; c < found; ++c) take(s.dot.data() + c, 1, at + place[c], hits + i);
    }
  }

  const ExceedProblem& p_;
  const int64_t* rows_;
  const bool screen_;
  ExceedRows& out_;
  const bool in_place_;
  const double relative_, lost_;  // of a float32 dot
  const TopkKernels& kernels_ = topk_kernels();
  const int64_t stride_ = round_up(p_.d, 16);
  std::vector<double> shifted_;
  std::atomic<bool> finite_{true};
};

}  // namespace

bool exceed_directly(const ExceedProblem& p, const int64_t* rows, int64_t n, bool screen,
                     const Workers& workers, ExceedRows* out) {
  if (n == 0) return true;
  const bool wide = p.x.dtype == DType::f64 || p.w.dtype == DType::f64;
  return wide ? Above<double>(p, rows, false, out).run(n, workers)
              : Above<float>(p, rows, screen, out).run(n, workers);
}

}  // namespace finescope
