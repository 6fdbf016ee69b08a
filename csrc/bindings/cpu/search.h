// Filters and results of searches as the CPU's engines take and give them.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include "bindings/search.h"

namespace finescope {

struct SearchOptions {
  int64_t k;
  const std::string& metric;
  const std::optional<double>& min_score;
  const std::optional<Tensor>&exclude, &mask;
  int64_t id_offset;
};

class Filters {
 public:
  Filters(const SearchOptions& o, int64_t Q, int64_t N, const char* op) {
    check_filters(o.exclude, o.mask, o.id_offset, Q, N, op);
    if (o.exclude.has_value()) {
      const Tensor given = packed(*o.exclude);
      E_ = given.size(1);
      for (int64_t i = 0; i < given.numel(); ++i) {
        const int64_t id = data<int64_t>(given)[i];
        exclude_.push_back(id < 0 ? -1 : id - o.id_offset);
      }
    }
    if (o.mask.has_value()) mask_ = packed(*o.mask);
  }

  // [Q, E] rows of the corpus, -1 for none; null where there are none.
  const int64_t* exclude() const { return E_ ? exclude_.data() : nullptr; }
  int64_t E() const { return E_; }
  // [N] 0: never returned; or null.
  const uint8_t* mask() const {
    return mask_ ? static_cast<const uint8_t*>(mask_->const_data_ptr()) : nullptr;
  }

 private:
  std::vector<int64_t> exclude_;
  int64_t E_ = 0;
  std::optional<Tensor> mask_;
};

// Room for the results of a search.
struct Found {
  Tensor scores, ids;
  bool f64;

  Found(const Tensor& like, int64_t Q, int64_t k, bool wide)
      : scores(empty_like_options(like, {Q, k}, wide ? ScalarType::Double : ScalarType::Float)),
        ids(empty_like_options(like, {Q, k}, ScalarType::Long)),
        f64(wide) {}

  TopkOutput output() const {
    return {scores.mutable_data_ptr(), f64, static_cast<int64_t*>(ids.mutable_data_ptr())};
  }

  // Blanks what is below the minimum once it is rounded.
  void drop_below(const std::optional<double>& minimum) const {
    if (!minimum.has_value()) return;
    const TopkOutput out = output();
    f64 ? drop(static_cast<double*>(out.score), out.id, *minimum)
        : drop(static_cast<float*>(out.score), out.id, *minimum);
  }

 private:
  template <class T>
  void drop(T* score, int64_t* id, double minimum) const {
    for (int64_t i = 0; i < ids.numel(); ++i) {
      if (!(static_cast<double>(score[i]) >= minimum)) {
        score[i] = -std::numeric_limits<T>::infinity(), id[i] = -1;
      }
    }
  }
};

}  // namespace finescope
