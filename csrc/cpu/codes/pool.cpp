// Token codes to document codes. Scalar on purpose: the work is one read-modify-write at an unpredictable
// place per entry, which no instruction set of those supported does several of at once without conflicts.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"

namespace finescope {
namespace {

// Latents up to this get a place each in a table; beyond it (never an SAE of today) entries are sorted
// instead.
constexpr int64_t kTable = int64_t{1} << 22;

struct Pooled {
  double value;
  int64_t latent;
};

struct Stronger {
  bool operator()(const Pooled& a, const Pooled& b) const {
    return a.value > b.value || (a.value == b.value && a.latent < b.latent);
  }
};

// The strongest `keep` of all that is offered. What is weaker than the weakest of some `keep` already seen is
// turned away by one comparison; the rest is gathered, and cut to `keep` whenever it has doubled.
class Strongest {
 public:
  explicit Strongest(int64_t keep) : keep_(keep) {}

  void offer(double value, int64_t latent) {
    if (value < threshold_ || keep_ == 0) return;
    // Grown by what there is, not to 2 * keep at once: callers may ask for more than any document holds.
    if (size_ == static_cast<int64_t>(best_.size())) best_.resize(std::max<int64_t>(64, 2 * size_));
    best_[size_++] = {value, latent};
    if (size_ / 2 >= keep_) cut();
  }

  // The kept ones in ascending latents; empty afterwards.
  template <class Store>
  void drain(Store store) {
    if (size_ > keep_) cut();
    std::sort(best_.begin(), best_.begin() + size_,
              [](const Pooled& a, const Pooled& b) { return a.latent < b.latent; });
    for (int64_t s = 0; s < size_; ++s) store(s, best_[s]);
    size_ = 0;
    threshold_ = 0.0;
  }

  int64_t size() const { return std::min(size_, keep_); }

 private:
  void cut() {
    std::nth_element(best_.begin(), best_.begin() + (keep_ - 1), best_.begin() + size_, Stronger());
    threshold_ = best_[keep_ - 1].value;
    size_ = keep_;
  }

  int64_t keep_, size_ = 0;
  double threshold_ = 0.0;
  std::vector<Pooled> best_;
};

template <class T>
class Pool {
 public:
  explicit Pool(const PoolArgs& args)
      : a_(args), values_(static_cast<const T*>(args.values)), strongest_(args.keep) {}

  // Returns the lowest negative latent with a positive value in document n, or 0.
  int64_t document(int64_t n) {
    const int64_t first = a_.offsets[n] * a_.K, last = a_.offsets[n + 1] * a_.K;
    int64_t low = 0, high = -1;
    for (int64_t i = first; i < last; ++i) {
      if (!held(values_[i])) continue;
      low = std::min(low, a_.indices[i]);
      high = std::max(high, a_.indices[i]);
    }
    if (low < 0) return low;
    tokens_ = static_cast<double>(a_.offsets[n + 1] - a_.offsets[n]);
    if (high < kTable) {
      by_table(first, last, high);
    } else {
      by_sorting(first, last);
    }
    store(a_.out_values + n * a_.keep, a_.out_indices + n * a_.keep);
    return 0;
  }

 private:
  static bool held(T v) { return v > 0 && v <= std::numeric_limits<T>::max(); }

  // Whether a token's entries of one latent must be added up before they are reduced.
  bool per_token() const { return a_.reduce == Reduce::max || a_.reduce == Reduce::count; }

  double combine(double total, double value) const {
    if (a_.reduce == Reduce::max) return std::max(total, value);
    return total + (a_.reduce == Reduce::count ? 1.0 : value);
  }

  // A latent is new to a table while its place holds 0: everything that is added is positive.
  void by_table(int64_t first, int64_t last, int64_t high) {
    if (static_cast<int64_t>(total_.size()) <= high) {
      total_.resize(high + 1, 0.0);
      token_.resize(high + 1, 0.0);
    }
    latents_.resize(std::max<size_t>(latents_.size(), last - first + 1));
    seen_.resize(a_.K + 1);
    int64_t count = 0;
    if (!per_token()) {
      for (int64_t i = first; i < last; ++i) {
        if (!held(values_[i])) continue;
        double& total = total_[a_.indices[i]];
        latents_[count] = a_.indices[i];
        count += total == 0.0;
        total += static_cast<double>(values_[i]);
      }
    } else {
      for (int64_t row = first; row < last; row += a_.K) {
        int64_t distinct = 0;
        for (int64_t i = row; i < row + a_.K; ++i) {
          if (!held(values_[i])) continue;
          double& sum = token_[a_.indices[i]];
          seen_[distinct] = a_.indices[i];
          distinct += sum == 0.0;
          sum += static_cast<double>(values_[i]);
        }
        for (int64_t s = 0; s < distinct; ++s) {
          double& total = total_[seen_[s]];
          latents_[count] = seen_[s];
          count += total == 0.0;
          total = combine(total, token_[seen_[s]]);
          token_[seen_[s]] = 0.0;
        }
      }
    }
    for (int64_t s = 0; s < count; ++s) {
      offer(total_[latents_[s]], latents_[s]);
      total_[latents_[s]] = 0.0;
    }
  }

  void by_sorting(int64_t first, int64_t last) {
    std::vector<int64_t> order;
    for (int64_t i = first; i < last; ++i) {
      if (held(values_[i])) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t i, int64_t j) { return a_.indices[i] < a_.indices[j]; });
    for (size_t s = 0; s < order.size();) {
      const int64_t latent = a_.indices[order[s]];
      double total = 0.0;
      while (s < order.size() && a_.indices[order[s]] == latent) {
        double value = static_cast<double>(values_[order[s]]);
        const int64_t token = order[s++] / a_.K;
        while (per_token() && s < order.size() && a_.indices[order[s]] == latent &&
               order[s] / a_.K == token) {
          value += static_cast<double>(values_[order[s++]]);
        }
        total = combine(total, value);
      }
      offer(total, latent);
    }
  }

  void offer(double value, int64_t latent) {
    if (a_.reduce == Reduce::mean || a_.reduce == Reduce::sqrt_mean) value /= tokens_;
    strongest_.offer(a_.reduce == Reduce::sqrt_mean ? std::sqrt(value) : value, latent);
  }

  void store(float* values, int64_t* latents) {
    const int64_t kept = strongest_.size();
    strongest_.drain([&](int64_t s, const Pooled& p) {
      values[s] = static_cast<float>(p.value);
      latents[s] = p.latent;
    });
    std::fill(values + kept, values + a_.keep, 0.0f);
    std::fill(latents + kept, latents + a_.keep, -1);
  }

  const PoolArgs& a_;
  const T* values_;
  std::vector<double> total_, token_;
  std::vector<int64_t> latents_, seen_;
  Strongest strongest_;
  double tokens_ = 0.0;
};

template <class T>
int64_t pool(const PoolArgs& args, int64_t begin, int64_t end) {
  Pool<T> pool(args);
  int64_t low = 0;
  for (int64_t n = begin; n < end; ++n) low = std::min(low, pool.document(n));
  return low;
}

}  // namespace

int64_t pool_codes(const PoolArgs& args, int64_t begin, int64_t end) {
  return args.f64 ? pool<double>(args, begin, end) : pool<float>(args, begin, end);
}

}  // namespace finescope
