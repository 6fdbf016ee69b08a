#include "cpu/topk/screen.h"

#include <algorithm>
#include <cmath>

namespace finescope {

ScreenPlan::ScreenPlan(const TopkProblem& p, const Packed& w, bool whole)
    : problem(p),
      packed(w),
      kernels(topk_kernels()),
      centring(p.x, p.B, p.d, p.metric, w.centre),
      quantizer(w.kind, w.metric, w.d),
      slack(static_cast<size_t>(w.panels), 0.0f),
      valid(static_cast<size_t>(w.panels)) {
  if (centring.any()) quantizer.mean = centring.mean.data();
  if (!centring.x.empty()) quantizer.centre = centring.x.data();
  if (p.bias != nullptr || !centring.x.empty()) bias.assign(static_cast<size_t>(w.panels * w.nr), 0.0f);
  open = kOpen;
  if (std::isfinite(p.floor)) {
    // Rounded down, so that nothing above the floor is below it.
    open = static_cast<float>(p.floor - std::fabs(p.floor) * 0x1p-20);
    if (!(std::fabs(open) < 0x1p60f)) open = open < 0 ? kOpen : kClosed;
  }
  wanted = p.k + p.E;
  // The wider the rows, the wider a bound is beside the spread of the scores, and the more candidates pass
  // it.
  capacity = round_up((p.bare ? 4 : 8 + w.depth / 64) * wanted + 1024, 16);
  panels = {w.data, w.panel_bytes, w.units,      w.scale,      w.inv_scale,
            w.norm, w.err,         slack.data(), valid.data(), bias.empty() ? nullptr : bias.data()};
  if (!whole) return;
  for (int64_t panel = 0; panel < w.panels; ++panel) add(panel);
  close();
}

void ScreenPlan::add(int64_t panel) {
  const Packed& w = packed;
  const int64_t first = panel * w.nr;
  valid[panel] = w.valid[panel];
  for (int c = 0; problem.mask != nullptr && c < w.nr; ++c) {
    if (w.row[first + c] >= 0 && !problem.mask[w.row[first + c]]) valid[panel] &= ~(1u << c);
  }
  if (bias.empty()) return;
  // The bias of the problem, and <ν, w - μ>: ν in float32 is not quite a multiple of μ, and `along` is rounded to
  // float32.
  const double factor = centring.factor;
  const double rounding = centring.x_size * 0x1p-23 * w.max_norm + std::fabs(factor) * 0x1p-140;
  double largest = 0.0;
  for (int64_t c = first; c < first + w.nr; ++c) {
    if (w.row[c] < 0) continue;
    const double given = problem.bias != nullptr ? problem.bias[w.row[c]] : 0.0;
    const double along = factor != 0.0 ? factor * w.along[c] : 0.0;
    const double size = std::fabs(given) + std::fabs(along);
    bias[c] = static_cast<float>(given + along);
    largest = size < 0x1p60 ? std::max(largest, size) : HUGE_VAL;
  }
  // Rounding of the bias, and of the sum with it; 2^-100 covers a bias that float32 cannot hold.
  slack[panel] = static_cast<float>(largest * 0x1p-20 + rounding * 1.001) + 0x1p-100f;
}

void ScreenPlan::close() {
  for (int64_t panel = 0; panel < packed.panels; ++panel) worst.add(panels, panel);
  max_size = packed.max_norm + static_cast<float>(centring.mean_size) * (1.0f + 0x1p-20f);
  // As it is part of every slack.
  max_bias = worst.slack * 0x1.01p20f;
  usable = packed.tame && max_bias < 0x1p60f;
}

namespace {

// The unit that int16 accumulators of a chunk of bytes start from, modulo 2^16.
uint32_t chunk_start(const uint32_t* units, int64_t n, int32_t offset) {
  int32_t first = 0, second = 0;
  for (int64_t u = 0; u < n; ++u) {
    int8_t e[4];
    std::memcpy(e, units + u, 4);
    first += e[0] + e[1];
    second += e[2] + e[3];
  }
  return static_cast<uint16_t>(-offset * first) |
         static_cast<uint32_t>(static_cast<uint16_t>(-offset * second)) << 16;
}

}  // namespace

RowGroups::RowGroups(const TopkKernels& kernels, ScreenKind kind, int64_t units, int64_t rows)
    : chunk_(kernels.whole[static_cast<int>(kind)].chunk),
      units_(units),
      run_(kernels.rows[static_cast<int>(kind)].run),
      length_(round_up(units, run_) + (chunk_ > 0 ? (units + chunk_ - 1) / chunk_ : 0)),
      offset_(kernels.whole[static_cast<int>(kind)].offset),
      resident_(std::max<int64_t>(1, kernels.rows[static_cast<int>(kind)].resident /
                                         (kernels.rows[static_cast<int>(kind)].most * length_ * 4))) {
  const int64_t most = kernels.rows[static_cast<int>(kind)].most, groups = (rows + most - 1) / most;
  // Matrix registers are filled whole: what follows the last rows is read, and of no consequence.
  data.resize(static_cast<size_t>(rows * length_ + (run_ > 1 ? most * run_ : 0)));
  offset.resize(static_cast<size_t>(groups));
  row.resize(static_cast<size_t>(groups + 1));
  for (int64_t g = 0; g <= groups; ++g) {
    row[g] = static_cast<int32_t>(rows * g / std::max<int64_t>(groups, 1));
    if (g < groups) offset[g] = row[g] * length_ * 4;
  }
}

void RowGroups::put(int64_t i, const uint32_t* units) {
  while (i >= row[group_ + 1]) ++group_;
  const int64_t height = row[group_ + 1] - row[group_];
  uint32_t* out = data.data() + row[group_] * length_ + (i - row[group_]) * run_;
  if (run_ > 1) {
    for (int64_t u = 0; u < units_; u += run_, out += height * run_) {
      std::copy(units + u, units + std::min(u + run_, units_), out);
    }
    return;
  }
  for (int64_t u = 0; u < units_; ++u, out += height) {
    if (chunk_ > 0 && u % chunk_ == 0) {
      *out = chunk_start(units + u, std::min(chunk_, units_ - u), offset_);
      out += height;
    }
    *out = units[u];
  }
}

void PackedRows::pack(const ScreenPlan& plan, int64_t first, int64_t n) {
  const RowQuantizer& q = plan.quantizer;
  const Matrix& x = plan.problem.x;
  const WholeNumbers& form = plan.kernels.whole[static_cast<int>(q.kind)];
  const size_t entries = static_cast<size_t>(n + kSlack);
  for (std::vector<float>* v : {&scale, &inv_scale}) v->assign(entries, 1.0f);
  for (std::vector<float>* v : {&norm, &err}) v->assign(entries, 0.0f);
  tau.assign(entries, kClosed);
  start.assign(entries, 0);
  norm64.assign(entries, 0.0);
  size.assign(entries, 0.0f);
  shift.assign(static_cast<size_t>(n), 0.0);
  rounding.assign(static_cast<size_t>(n), 0.0);
  state.assign(static_cast<size_t>(n), kScreen);
  groups = RowGroups(plan.kernels, q.kind, q.units, n);
  std::vector<float> row(static_cast<size_t>(q.padded));
  std::vector<uint32_t> units(static_cast<size_t>(q.padded));
  for (int64_t i = 0; i < n; ++i) {
    const RowQuantizer::Loaded loaded = q.load(plan.kernels, row_of(x, first + i), x.dtype, row.data());
    norm64[i] = loaded.norm;
    state[i] = !loaded.finite ? kBad : loaded.tame ? kScreen : kScan;
    if (in_whole_numbers(q.kind)) {
      const float step = form.step(row.data(), q.padded);
      if (step > 0) scale[i] = step, inv_scale[i] = 1.0f / step;
    }
    const RowQuantizer::Row r =
        q.quantize(plan.kernels, row.data(), scale[i], inv_scale[i], loaded.lost, 0, units.data());
    norm[i] = r.norm;
    err[i] = r.err;
    size[i] = r.size;
    if (form.offset != 0) start[i] = -form.offset * r.sum;
    if (plan.centring.any()) {
      shift[i] = loaded.dot;
      // Of <x, μ>, of <ν, w - μ> and of the score itself, all added up in float64.
      const double x_size = r.size + 2 * plan.centring.x_size,
                   w_size = plan.max_size + plan.centring.mean_size;
      rounding[i] =
          static_cast<double>(plan.problem.d + 64) * 0x1p-51 * x_size * w_size + plan.max_bias * 0x1p-50;
    }
    if (state[i] == kScreen) tau[i] = lowest(plan, i);
    groups.put(i, units.data());
  }
}

float PackedRows::lowest(const ScreenPlan& plan, int64_t i) const {
  const double floor = plan.problem.floor;
  if (!plan.centring.any() || !std::isfinite(floor)) return plan.open;
  const double at = floor - shift[i] - rounding[i] - (std::fabs(floor) + std::fabs(shift[i])) * 0x1p-50;
  if (!(std::fabs(at) < 0x1p60)) return at < 0 ? kOpen : kClosed;
  const float rounded = static_cast<float>(at);
  return rounded > at ? std::nextafter(rounded, kOpen) : rounded;
}

double PackedRows::certain(int64_t i, float threshold) const {
  if (threshold == kClosed) return kClosed;
  const double t = threshold, sum = t + shift[i] + rounding[i];
  return rounding[i] > 0 ? sum + (std::fabs(t) + std::fabs(shift[i])) * 0x1p-50 : sum;
}

void Screening::begin(const ScreenPlan& plan, const PackedRows& rows, std::atomic<float>* shared) {
  plan_ = &plan;
  rows_ = &rows;
  shared_ = shared;
  capacity_ = plan.capacity;
  const int64_t n = rows.rows(), cells = n * capacity_ + kSlack;
  if (cells > reserved_) {
    memory_ = Block(cells * 8);
    reserved_ = cells;
  }
  score_ = reinterpret_cast<float*>(memory_.get());
  column_ = reinterpret_cast<int32_t*>(memory_.get() + reserved_ * 4);
  tau_ = rows.tau;
  worst_ = Worst();
  count_.assign(static_cast<size_t>(n + kSlack), 0);
  const int64_t limit = std::min(2 * plan.wanted + 64, capacity_ - 2 * kSlack);
  limit_.assign(static_cast<size_t>(n + kSlack), static_cast<int32_t>(limit));
}

void Screening::run(int64_t begin_panel, int64_t end_panel, const char* packed) {
  const PackedRows& r = *rows_;
  if (shared_ != nullptr) {
    for (int64_t i = 0; i < r.rows(); ++i) {
      tau_[i] = std::max(tau_[i], shared_[i].load(std::memory_order_relaxed));
    }
  }
  ScreenPanels w = plan_->panels;
  if (packed != nullptr) w.packed = packed - begin_panel * w.panel_bytes;
  for (int64_t panel = begin_panel; panel < end_panel; ++panel) worst_.add(w, panel);
  const int64_t groups = static_cast<int64_t>(r.groups.offset.size());
  // Panels that stay in cache are read by so many groups of rows after another as stay there beside them.
  const bool cached = (end_panel - begin_panel) * w.panel_bytes <= kChunkBytes;
  const int64_t together = cached ? r.groups.resident() : groups;
  for (int64_t g = 0; g < groups; g += together) {
    const int64_t end = std::min(g + together, groups);
    const ScreenRows rows{reinterpret_cast<const char*>(r.groups.data.data()),
                          r.groups.offset.data() + g,
                          r.groups.row.data() + g,
                          static_cast<int32_t>(end - g),
                          r.scale.data(),
                          r.inv_scale.data(),
                          r.norm.data(),
                          r.err.data(),
                          r.start.data(),
                          tau_.data(),
                          score_,
                          column_,
                          count_.data(),
                          limit_.data(),
                          capacity_,
                          this,
                          &Screening::full};
    plan_->kernels.screen[static_cast<int>(plan_->packed.kind)](rows, w, begin_panel, end_panel);
  }
}

int64_t Screening::raise(const ScreenPlan& plan, const Worst& worst, const PackedRows& rows, int64_t row,
                         float* score, int32_t* column, int64_t n, int64_t most, float* tau) {
  if (plan.problem.bare || n < plan.wanted) return n;
  const float bound = largest_bound(worst, rows, row);
  // Errors of single scores are smaller than their bound by about the root of the depth. A margin of a few of
  // them keeps the guess below the exact score it stands for.
  const float margin = bound * std::min(1.0f, 2.5f / std::sqrt(static_cast<float>(plan.packed.depth)));
  const float guess = plan.kernels.about_kth(score, n, plan.wanted, most) - margin;
  if (guess > *tau) *tau = guess;
  return plan.kernels.keep(score, column, n, *tau - bound - (std::fabs(*tau) + bound) * 0x1p-20f);
}

void Screening::full(void* self, int32_t row) {
  Screening& s = *static_cast<Screening*>(self);
  float tau = s.tau_[row];
  if (s.shared_ != nullptr) tau = std::max(tau, s.shared_[row].load(std::memory_order_relaxed));
  int64_t n = tau == kClosed ? 0
                             : raise(*s.plan_, s.worst_, *s.rows_, row, s.score(row), s.column(row),
                                     s.count_[row], s.plan_->wanted + s.plan_->wanted / 8, &tau);
  const int64_t most = s.capacity_ - 2 * kSlack;
  // What the bound of the worst panel has let through.
  if (n > most / 2) n = keep_certain(*s.plan_, *s.rows_, row, s.score(row), s.column(row), n, tau);
  if (n > most * 3 / 4) {
    // No threshold separates this row: it is given up here and scanned later.
    tau = kClosed;
    n = 0;
  }
  s.tau_[row] = tau;
  s.count_[row] = static_cast<int32_t>(n);
  s.limit_[row] = static_cast<int32_t>(std::min(most, std::max<int64_t>(2 * n, 2 * s.plan_->wanted + 64)));
  if (s.shared_ == nullptr) return;
  float known = s.shared_[row].load(std::memory_order_relaxed);
  while (known < tau && !s.shared_[row].compare_exchange_weak(known, tau, std::memory_order_relaxed)) {
  }
}

int64_t keep_certain(const ScreenPlan& plan, const PackedRows& rows, int64_t row, float* score,
                     int32_t* column, int64_t n, float tau) {
  const float norm = rows.norm[row], err = rows.err[row];
  const ScreenPanels& w = plan.panels;
  const int shift = __builtin_ctz(static_cast<unsigned>(plan.packed.nr));  // 8, 16 or 32 columns
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t p = column[i] >> shift;
    const float bound = norm * w.err[p] + err * w.norm[p] + w.slack[p];
    const float highest = score[i] + bound + (std::fabs(tau) + std::fabs(score[i]) + bound) * 0x1p-20f;
    const int32_t c = column[i];
    score[kept] = score[i];
    column[kept] = c;
    kept += highest >= tau;
  }
  return kept;
}

}  // namespace finescope
