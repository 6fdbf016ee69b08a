// The kernels of the top-k engine without torch: their results, against a plain computation in the fixed
// order; their bounds, looked at directly; and their memory, under sanitizers.
//
// Prints a line for each failure and exits with 1 if there was one.
#include <algorithm>
#include <iterator>
#include <limits>
#include <string>

#include "cpu/topk_screen.h"
#include "host.h"

using namespace finescope;

namespace {

const char* const kKinds[] = {"gaussian", "outliers", "mean", "sparse", "corners", "tiny", "onehot", "zeros"};

// Exactly n * d floats: what is read behind them, a sanitizer sees.
std::vector<float> data(const std::string& kind, int64_t n, int64_t d) {
  std::vector<float> values(static_cast<size_t>(n * d));
  for (float& v : values) v = host::random.normal();
  for (int64_t i = 0; i < n; ++i) {
    float* row = values.data() + i * d;
    for (int64_t j = 0; j < d; ++j) {
      if (kind == "outliers" && j % 50 == 3) row[j] *= 300.0f;
      if (kind == "mean") row[j] += 20.0f;
      if (kind == "sparse" && host::random.next() % 10) row[j] = 0.0f;
      // Half a step of the int8 grid away from it, every element in the same direction: errors as large as
      // they get.
      if (kind == "corners") row[j] = j == 0 ? 127.0f : (host::random.next() % 2 ? 1.0f : -1.0f) * 0.4999f;
      if (kind == "tiny") row[j] *= 1e-38f;
      if (kind == "onehot") row[j] = j == i % d ? 1.0f : 0.0f;
      if (kind == "zeros") row[j] = 0.0f;
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
// sum in float64 is wrong by less than a part in 2^40 of |x||w|; bounds are rounded up by one in 2^20.
void check_bounds(const char* kind, int64_t B, int64_t N, int64_t d, Metric metric, ScreenKind screen) {
  const std::vector<float> x = data(kind, B, d), w = data(kind, N, d);
  std::vector<double> bias(static_cast<size_t>(N));
  for (double& b : bias) b = host::random.normal();
  TopkProblem p = problem(x, B, w, N, d, N, metric, metric == Metric::encode ? bias.data() : nullptr);
  p.floor = -std::numeric_limits<double>::infinity();
  const Workers workers{1, host::run_threads};
  const PackRequest request{p.w, N, d, metric, screen, false};
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
                           static_cast<double>(rows.err[i]) * packed.norm[panel] + plan.slack[panel];
      const double wrong = std::fabs(exact.score(i, id) - screening.score(i)[c]);
      if (!(wrong <= bound)) {
        return host::fail("%s d=%d metric %d screen %d: off by %g, bound %g", kind, int(d), int(metric),
                          int(screen), wrong, bound);
      }
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
  for (ScreenChoice choice :
       {ScreenChoice::none, ScreenChoice::f32, ScreenChoice::bf16, ScreenChoice::int8}) {
    // What this instruction set has not is screened in float32, which has its turn.
    if (choice > ScreenChoice::f32 && best_screen(choice, d) == ScreenKind::f32) continue;
    topk(p, nullptr, choice, workers, {score.data(), false, id.data()}, nullptr);
    if (std::memcmp(score.data(), wanted.data(), cells * 4) ||
        std::memcmp(id.data(), wanted_id.data(), cells * 8)) {
      host::fail("%s B=%d d=%d metric %d choice %d threads %d: other bytes than the plain computation", kind,
                 int(B), int(d), int(metric), int(choice), threads);
    }
  }
}

}  // namespace

// Data of the kinds that are named, or of all.
int main(int argc, char** argv) {
  std::vector<const char*> kinds(argv + 1, argv + argc);
  if (kinds.empty()) kinds.assign(std::begin(kKinds), std::end(kKinds));
  return host::run([&] {
    for (const char* kind : kinds) {
      for (int64_t d : {1, 15, 64, 130, 257}) {
        for (Metric metric : {Metric::encode, Metric::ip, Metric::cosine}) {
          for (ScreenKind screen : {ScreenKind::f32, ScreenKind::bf16, ScreenKind::int8}) {
            // As many numbers are drawn whichever screens there are.
            const host::Random before = host::random;
            if (screen_available(screen)) check_bounds(kind, 17, 70, d, metric, screen);
            host::random = before;
          }
        }
      }
      for (Metric metric : {Metric::encode, Metric::cosine}) {
        check_bytes(kind, 130, 1100, 67, 9, metric, 2);
        check_bytes(kind, 11, 1300, 128, 30, metric, 3);
        check_bytes(kind, 1, 1300, 33, 5, metric, 1);
      }
    }
  });
}
