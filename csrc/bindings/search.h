// Options of the searches, checked the same way by every backend.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "bindings/tensors.h"

namespace finescope {

struct NamedScreen {
  const char* name;
  ScreenChoice choice;
};
inline constexpr NamedScreen kScreens[] = {{"auto", ScreenChoice::automatic},
                                           {"int8", ScreenChoice::int8},
                                           {"bf16", ScreenChoice::bf16},
                                           {"float32", ScreenChoice::f32},
                                           {"none", ScreenChoice::none}};

inline ScreenChoice screen_choice(const std::string& name, const char* op) {
  std::string known;
  for (const NamedScreen& screen : kScreens) {
    if (name == screen.name) return screen.choice;
    known += words(known.empty() ? "'" : ", '", screen.name, "'");
  }
  fail(op, ": screen must be one of ", known, ", got '", name, "'");
}

inline Metric search_metric(const std::string& name, const char* op) {
  check(name == "cosine" || name == "ip", op, ": metric must be one of 'cosine', 'ip', got '", name, "'");
  return name == "ip" ? Metric::ip : Metric::cosine;
}

inline void check_filters(const std::optional<Tensor>& exclude, const std::optional<Tensor>& mask,
                          int64_t id_offset, int64_t Q, int64_t N, const char* op) {
  check(id_offset >= 0, op, ": id_offset must be at least 0, got ", id_offset);
  if (exclude.has_value()) {
    check(exclude->dim() == 2 && exclude->size(0) == Q, op, ": exclude ", shape_text(*exclude),
          " must have shape [", Q, ", E]");
    check(exclude->scalar_type() == ScalarType::Long, op, ": exclude must be int64, not ",
          dtype_name(exclude->scalar_type()));
  }
  if (mask.has_value()) {
    check(mask->dim() == 1 && mask->size(0) == N, op, ": mask ", shape_text(*mask), " must have shape [", N,
          "]");
    check(mask->scalar_type() == ScalarType::Bool, op, ": mask must be bool, not ",
          dtype_name(mask->scalar_type()));
  }
}

// What a score must exceed before it is rounded. Scores are held against the minimum after rounding: what
// lies this little below may be rounded up to it.
inline double floor_of(const std::optional<double>& min_score) {
  if (!min_score.has_value()) return -std::numeric_limits<double>::infinity();
  const double floor = *min_score - std::fabs(*min_score) * 0x1p-22 - 0x1p-140;
  return floor >= -std::numeric_limits<double>::max() ? floor : -std::numeric_limits<double>::infinity();
}

}  // namespace finescope
