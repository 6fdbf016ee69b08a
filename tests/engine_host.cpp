// The kernels of the top-k engine without torch: their results, against a plain computation in the fixed
// order; their bounds, looked at directly; and their memory, under sanitizers.
//
// Prints a line for each failure and exits with 1 if there was one.
#include <algorithm>
#include <functional>
#include <iterator>
#include <limits>
#include <string>

#include "cpu/topk/centre.h"
#include "cpu/topk/exceed.h"
#include "cpu/topk/screen.h"
#include "host.h"

using namespace finescope;

namespace {

const char* const kKinds[] = {"gaussian", "outliers", "mean",   "far",   "equal", "sparse",
                              "corners",  "tiny",     "onehot", "zeros", "crowd"};

// Exactly n * d floats: what is read behind them, a sanitizer sees.
std::vector<float> data(const std::string& kind, int64_t n, int64_t d) {
  std::vector<float> values(static_cast<size_t>(n * d));
  for (float& v : values) v = host::random.normal();
  std::vector<float> common(static_cast<size_t>(d));
  for (float& v : common) v = std::fabs(host::random.normal());
  for (int64_t i = 0; i < n; ++i) {
    float* row = values.data() + i * d;
    for (int64_t j = 0; j < d; ++j) {
      if (kind == "outliers" && j % 50 == 3) row[j] *= 300.0f;
      if (kind == "mean") row[j] += 20.0f;
      // Common to all rows: nearly everything, and everything but the last places of a few elements.
      if (kind == "far") row[j] += 1e4f * common[j];
      if (kind == "equal") row[j] = common[j] * (host::random.next() % 8 ? 1.0f : 1.0f + 0x1p-23f);
      if (kind == "sparse" && host::random.next() % 10) row[j] = 0.0f;
      // Half a step of the int8 grid away from it, every element in the same direction: errors as large as
      // they get.
      if (kind == "corners") row[j] = j == 0 ? 127.0f : (host::random.next() % 2 ? 1.0f : -1.0f) * 0.4999f;
      if (kind == "tiny") row[j] *= 1e-38f;
      if (kind == "onehot") row[j] = j == i % d ? 1.0f : 0.0f;
      if (kind == "zeros") row[j] = 0.0f;
      // The best 80 differ by less than float32 can tell of sums in it.
      if (kind == "crowd") {
        row[j] =
            i < 80 ? common[j] * (1 + static_cast<float>(host::random.below(8)) * 0x1p-23f) : row[j] * 0.01f;
      }
    }
  }
  return values;
}

TopkProblem problem(const std::vector<float>& x, int64_t B, const std::vector<float>& w, int64_t N, int64_t d,
                    int64_t k, Metric metric, const double* bias) {
  const double floor = metric == Metric::encode ? 0.0 : -std::numeric_limits<double>::infinity();
  return {{x.data(), d, DType::f32},
          {w.data(), d, DType::f32},
          B,
          N,
          d,
          k,
          metric,
          bias,
          floor,
          nullptr,
          0,
          nullptr,
          0};
}

double dot(const float* a, const float* b, int64_t d) {
  return host::fixed_order_dot(
      d, [&](int64_t i) { return double{a[i]}; }, [&](int64_t i) { return double{b[i]}; });
}

// Exact scores, one at a time.
class Plain {
 public:
  explicit Plain(const TopkProblem& problem) : p(problem) {
    for (int64_t i = 0; i < p.B; ++i) x_norm.push_back(std::sqrt(dot(x(i), x(i), p.d)));
    for (int64_t i = 0; i < p.N; ++i) w_norm.push_back(std::sqrt(dot(w(i), w(i), p.d)));
  }
  double score(int64_t row, int64_t id) const {
    const double product = dot(x(row), w(id), p.d);
    if (p.metric == Metric::encode) return p.bias ? product + p.bias[id] : product;
    if (p.metric == Metric::ip) return product;
    const double norms = x_norm[row] * w_norm[id];
    return norms > 0 ? product / norms : 0;
  }

 private:
  const float* x(int64_t i) const { return static_cast<const float*>(p.x.data) + i * p.d; }
  const float* w(int64_t i) const { return static_cast<const float*>(p.w.data) + i * p.d; }
  const TopkProblem& p;
  std::vector<double> x_norm, w_norm;
};

// |exact - screened| <= bound for every pair: with an open threshold, every pair comes out of the screen. A
// sum in float64 is wrong by less than a part in 2^40 of |x||w|; bounds are rounded up by one in 2^20. What
// is taken out of rows is what they have in common, if anything; any row; or the first of them.
enum class Taken { common, any, first };
void check_bounds(const char* kind, int64_t B, int64_t N, int64_t d, Metric metric, ScreenKind screen,
                  Taken taken) {
  const std::vector<float> w = data(kind, N, d);
  std::vector<float> x = data(kind, B, d);
  if (taken == Taken::first) {  // rows of one kind, with a mean in common with those of w
    for (int64_t i = 0; i < B * d; ++i) x[i] = 0.5f * x[i] + w[i % d];
  }
  std::vector<double> bias(static_cast<size_t>(N));
  for (double& b : bias) b = host::random.normal();
  TopkProblem p = problem(x, B, w, N, d, N, metric, metric == Metric::encode ? bias.data() : nullptr);
  p.floor = -std::numeric_limits<double>::infinity();
  const Workers workers{1, host::run_threads};
  std::vector<float> centre = common_mean(p.w, N, d, metric);
  if (taken == Taken::any) centre = data("gaussian", 1, d);
  if (taken == Taken::first) centre.assign(w.begin(), w.begin() + d);
  const bool mean = std::string(kind) == "mean" || std::string(kind) == "far" || std::string(kind) == "equal";
  if (mean && centre.empty()) host::fail("%s: nothing found in common", kind);
  const PackRequest request{p.w, N, d, metric, screen, centre.empty() ? nullptr : centre.data()};
  Block memory(packed_bytes(request));
  const Packed packed = pack(request, workers, memory.get());
  const ScreenPlan plan(p, packed);
  PackedRows rows;
  rows.pack(plan, 0, B);
  Screening screening;
  screening.begin(plan, rows, nullptr);
  screening.run(0, packed.panels);
  const Plain exact(p);
  for (int64_t i = 0; i < B; ++i) {
    if (screening.count(i) != N) {
      host::fail("%s: row %d kept %d of %d", kind, int(i), int(screening.count(i)), int(N));
    }
    for (int64_t c = 0; c < screening.count(i); ++c) {
      const int32_t column = screening.column(i)[c], id = packed.row[column];
      const int64_t panel = column / packed.nr;
      const double bound = static_cast<double>(rows.norm[i]) * packed.err[panel] +
                           static_cast<double>(rows.err[i]) * packed.norm[panel] + plan.slack[panel] +
                           rows.rounding[i];
      const double wrong = std::fabs(exact.score(i, id) - rows.shift[i] - screening.score(i)[c]);
      if (!(wrong <= bound)) {
        return host::fail("%s d=%d metric %d screen %d: off by %g, bound %g", kind, int(d), int(metric),
                          int(screen), wrong, bound);
      }
    }
  }
}

// Sums of whole numbers are exact, also where their factors are as large as a screen takes them: no lane
// saturates or leaves its range. Rows go into the kernels as they are, past the rotation.
void check_sums(ScreenKind kind, int64_t d, int64_t rows) {
  const TopkKernels& kernels = topk_kernels();
  const WholeNumbers& form = kernels.whole[static_cast<int>(kind)];
  const int64_t units = kind == ScreenKind::int8 ? d / 4 : d / 2, n = 2 * kernels.nr;
  // Signs and sizes by element: sides of one sign, alternating ones, pairs, lanes, a few large elements,
  // noise.
  const auto element = [&](int64_t pattern, int64_t j) {
    switch (pattern % 8) {
      case 0:
        return 1.0f;
      case 1:
        return j % 2 ? -1.0f : 1.0f;
      case 2:
        return j / 2 % 2 ? 0.0f : 1.0f;
      case 3:
        return j / 2 % 2 ? 0.0f : -1.0f;
      case 4:
        return j % 64 < 2 ? 1.0f : 0.0f;
      case 5:
        return j % 64 < 10 ? -1.0f : 0.01f;
      case 6:
        return j < 64 ? 1.0f : 0.1f;
      default:
        return static_cast<float>(host::random.normal());
    }
  };
  const auto fill = [&](int64_t count, int32_t offset, std::vector<uint32_t>& out,
                        std::vector<int32_t>& whole) {
    std::vector<float> row(static_cast<size_t>(round_up(d, 64)));
    out.resize(static_cast<size_t>(count * units));
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < d; ++j) row[j] = element(i, j);
      const float step = form.step(row.data(), round_up(d, 64));
      kernels.quantize[static_cast<int>(kind)](row.data(), d, 1.0f / step, offset, units,
                                               out.data() + i * units);
      for (int64_t j = 0; j < d; ++j) {
        const char* at = reinterpret_cast<const char*>(out.data() + i * units);
        int16_t word;
        std::memcpy(&word, at + 2 * j * (kind == ScreenKind::int16), 2);
        const int32_t byte = offset > 0 ? static_cast<uint8_t>(at[j]) : static_cast<int8_t>(at[j]);
        whole.push_back(kind == ScreenKind::int16 ? word : byte - offset);
      }
    }
  };
  std::vector<uint32_t> x, w, panels(static_cast<size_t>(n * units));
  std::vector<int32_t> x_whole, w_whole;
  fill(rows, 0, x, x_whole);
  fill(n, form.offset, w, w_whole);
  for (int64_t p = 0; p < 2; ++p) {
    kernels.interleave(w.data() + p * kernels.nr * units, units, units, kernels.nr,
                       panels.data() + p * kernels.nr * units);
  }
  RowGroups groups(kernels, kind, units, rows);
  for (int64_t i = 0; i < rows; ++i) groups.put(i, x.data() + i * units);
  const size_t entries = static_cast<size_t>(rows + kSlack);
  std::vector<float> one(entries, 1.0f), none(entries, 0.0f), tau(entries, kOpen);
  std::vector<float> score(entries * static_cast<size_t>(n + kSlack));
  std::vector<int32_t> start(entries), column(score.size()), count(entries), limit(entries, 1 << 30);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < d; ++j) start[i] -= form.offset * x_whole[i * d + j];
  }
  const std::vector<uint32_t> valid(2, kernels.nr == 32 ? ~0u : (1u << kernels.nr) - 1);
  const ScreenRows screened{reinterpret_cast<const char*>(groups.data.data()),
                            groups.offset.data(),
                            groups.row.data(),
                            static_cast<int32_t>(groups.offset.size()),
                            one.data(),
                            one.data(),
                            none.data(),
                            none.data(),
                            start.data(),
                            tau.data(),
                            score.data(),
                            column.data(),
                            count.data(),
                            limit.data(),
                            n + kSlack,
                            nullptr,
                            nullptr};
  const ScreenPanels matrix{reinterpret_cast<const char*>(panels.data()),
                            units * kernels.nr * 4,
                            units,
                            one.data(),
                            one.data(),
                            none.data(),
                            none.data(),
                            none.data(),
                            valid.data(),
                            nullptr};
  kernels.screen[static_cast<int>(kind)](screened, matrix, 0, 2);
  for (int64_t i = 0; i < rows; ++i) {
    if (count[i] != n)
      host::fail("kind %d d=%d: row %d kept %d of %d", int(kind), int(d), int(i), count[i], int(n));
    for (int64_t c = 0; c < count[i]; ++c) {
      const int64_t at = i * (n + kSlack) + c, f = column[at];
      int64_t sum = 0;
      for (int64_t j = 0; j < d; ++j) sum += int64_t{x_whole[i * d + j]} * w_whole[f * d + j];
      if (static_cast<float>(sum) == score[at]) continue;
      host::fail("kind %d d=%d x %d w %d: sum %g instead of %g", int(kind), int(d), int(i), int(f),
                 double(score[at]), double(sum));
    }
  }
}

// The k best of all scores, by sorting them.
void plain(const TopkProblem& p, float* out, int64_t* id) {
  const Plain exact(p);
  std::vector<Hit> hits;
  for (int64_t b = 0; b < p.B; ++b) {
    hits.clear();
    for (int64_t n = 0; n < p.N; ++n) {
      const double s = exact.score(b, n);
      if (s > p.floor) hits.push_back({s, n});
    }
    std::sort(hits.begin(), hits.end(), [](const Hit& x, const Hit& y) {
      return x.score > y.score || (x.score == y.score && x.id < y.id);
    });
    int64_t next = 0;
    for (int64_t j = 0; j < p.k; ++j, ++out, ++id) {
      if (j < static_cast<int64_t>(hits.size())) {
        *out = static_cast<float>(hits[j].score);
        *id = hits[j].id;
        continue;
      }
      // An encoder fills up with zeros at the lowest other latents.
      const auto taken = [&](const Hit& h) { return h.id == next; };
      while (std::any_of(hits.begin(), hits.end(), taken)) ++next;
      const bool encode = p.metric == Metric::encode;
      *out = encode ? 0.0f : -std::numeric_limits<float>::infinity();
      *id = encode ? next++ : -1;
    }
  }
}

// The scan and every screen give the bytes of the plain computation.
void check_bytes(const char* kind, int64_t B, int64_t N, int64_t d, int64_t k, Metric metric, int threads) {
  const std::vector<float> x = data(kind, B, d), w = data(kind, N, d);
  const TopkProblem p = problem(x, B, w, N, d, k, metric, nullptr);
  const Workers workers{threads, host::run_threads};
  const size_t cells = static_cast<size_t>(B * k);
  std::vector<float> wanted(cells), score(cells);
  std::vector<int64_t> wanted_id(cells), id(cells);
  plain(p, wanted.data(), wanted_id.data());
  host::record(wanted.data(), cells * 4);
  host::record(wanted_id.data(), cells * 8);
  for (ScreenChoice choice : {ScreenChoice::none, ScreenChoice::automatic, ScreenChoice::f32,
                              ScreenChoice::bf16, ScreenChoice::int8}) {
    // What this instruction set has not is screened in float32, which has its turn.
    if (choice > ScreenChoice::f32 && best_screen(choice, {}, workers) == ScreenKind::f32) continue;
    topk(p, nullptr, choice, workers, {score.data(), false, id.data()});
    if (std::memcmp(score.data(), wanted.data(), cells * 4) ||
        std::memcmp(id.data(), wanted_id.data(), cells * 8)) {
      host::fail("%s B=%d d=%d metric %d choice %d threads %d: other bytes than the plain computation", kind,
                 int(B), int(d), int(metric), int(choice), threads);
    }
  }
}

// Latents above thresholds that lie on scores, or just below them: the entries of the plain computation.
void check_above(const char* kind, int64_t B, int64_t N, int64_t d, int threads) {
  const std::vector<float> x = data(kind, B, d), w = data(kind, N, d);
  std::vector<double> bias(static_cast<size_t>(N)), threshold(bias.size()), score(static_cast<size_t>(B * N));
  for (double& b : bias) b = host::random.normal();
  const TopkProblem of = problem(x, B, w, N, d, 1, Metric::encode, bias.data());
  const Plain exact(of);
  std::vector<double> column(static_cast<size_t>(B));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t b = 0; b < B; ++b) column[b] = score[b * N + n] = exact.score(b, n);
    std::nth_element(column.begin(), column.begin() + 3, column.end(), std::greater<double>());
    threshold[n] = n % 2 ? column[3] : std::nextafter(column[3], -std::numeric_limits<double>::infinity());
  }
  std::vector<int64_t> wanted_begin{0};
  std::vector<int32_t> wanted;
  std::vector<float> wanted_value;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t n = 0; n < N; ++n) {
      if (!(score[b * N + n] > threshold[n])) continue;
      wanted.push_back(static_cast<int32_t>(n));
      wanted_value.push_back(static_cast<float>(score[b * N + n]));
    }
    wanted_begin.push_back(static_cast<int64_t>(wanted.size()));
  }
  host::record(wanted.data(), wanted.size() * 4);
  host::record(wanted_value.data(), wanted.size() * 4);
  const Workers workers{threads, host::run_threads};
  const ExceedProblem p{of.x, of.w, B, N, d, bias.data(), threshold.data(), nullptr, nullptr, false};
  for (ScreenChoice choice : {ScreenChoice::none, ScreenChoice::automatic, ScreenChoice::f32,
                              ScreenChoice::bf16, ScreenChoice::int8}) {
    ExceedRows rows;
    exceed(p, nullptr, choice, workers, &rows);
    // Exactly as much room as it asks for.
    std::vector<int64_t> begin(static_cast<size_t>(B + 1));
    std::vector<int32_t> latent(static_cast<size_t>(rows.entries()));
    std::vector<float> value(latent.size());
    rows.write(p, begin.data(), latent.data(), value.data());
    if (begin == wanted_begin && latent == wanted &&
        !std::memcmp(value.data(), wanted_value.data(), value.size() * 4)) {
      continue;
    }
    host::fail("%s B=%d d=%d choice %d threads %d: other latents above thresholds than the plain computation",
               kind, int(B), int(d), int(choice), threads);
  }
}

// The choice between 8 and 16 bits depends on the data, not on the width alone.
void check_choice() {
  if (!screen_available(ScreenKind::int8)) return;
  const auto chosen = [](int64_t d, double share, float outliers) {
    const int64_t B = 64, N = 1 << 14;
    std::vector<float> x = data("gaussian", B, d), w = data("gaussian", N, d);
    // One large coordinate in every row of x that w hardly has: it widens the steps and moves no score.
    for (int64_t i = 0; i < B; ++i) x[i * d + 3] *= outliers;
    for (int64_t i = 0; i < N; ++i) w[i * d + 3] /= outliers;
    const TopkProblem p = problem(x, B, w, N, d, 1, Metric::ip, nullptr);
    return best_screen(ScreenChoice::automatic, {p.x, p.w, B, N, d, p.metric, nullptr, share},
                       {2, host::run_threads});
  };
  const bool wider = screen_available(ScreenKind::int16) || screen_available(ScreenKind::bf16);
  const bool right = chosen(256, 0.001, 1.0f) == ScreenKind::int8 &&
                     (!wider || chosen(256, 0.001, 200.0f) != ScreenKind::int8);
  if (right) return;
  host::fail("the screen does not follow the data");
}

}  // namespace

// Data of the kinds that are named, or of all.
int main(int argc, char** argv) {
  std::vector<const char*> kinds(argv + 1, argv + argc);
  if (kinds.empty()) kinds.assign(std::begin(kKinds), std::end(kKinds));
  return host::run([&] {
    // As many numbers are drawn whichever screens there are.
    const host::Random first = host::random;
    check_choice();
    for (ScreenKind kind : {ScreenKind::int8, ScreenKind::int16}) {
      for (int64_t d : {8, 64, 192, 1024, 4096}) {
        // 77: groups of more rows than half of a screen's, whichever it is, and a rest.
        for (int64_t rows : {13, 77}) {
          if (screen_available(kind)) check_sums(kind, d, rows);
        }
      }
    }
    host::random = first;
    for (const char* kind : kinds) {
      for (int64_t d : {1, 15, 64, 130, 257}) {
        for (Metric metric : {Metric::encode, Metric::ip, Metric::cosine}) {
          for (ScreenKind screen : {ScreenKind::f32, ScreenKind::bf16, ScreenKind::int8, ScreenKind::int16}) {
            const host::Random before = host::random;
            for (Taken taken : {Taken::common, Taken::any, Taken::first}) {
              if (screen_available(screen)) check_bounds(kind, 17, 70, d, metric, screen, taken);
              host::random = before;
            }
          }
        }
      }
      for (Metric metric : {Metric::encode, Metric::cosine}) {
        check_bytes(kind, 130, 1100, 67, 9, metric, 2);
        check_bytes(kind, 11, 1300, 128, 30, metric, 3);
        check_bytes(kind, 1, 1300, 33, 5, metric, 1);
        // So many columns that panels are packed while they are read.
        check_bytes(kind, 24, 5000, 96, 3, metric, 2);
      }
      check_above(kind, 130, 1100, 67, 2);
      check_above(kind, 11, 1300, 128, 3);
      check_above(kind, 4, 300, 33, 1);
    }
  });
}
