// The kernels of the top-k engine without torch: their bounds, looked at directly, and their memory, under
// sanitizers.
//
// Prints a line for each failure and exits with 1 if there was one.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "cpu/topk_screen.h"

using namespace finescope;

namespace {

int failures = 0;
std::mt19937_64 engine(1);

void run_threads(int threads, void (*body)(void*, int), void* context) {
  std::vector<std::thread> running;
  for (int i = 1; i < threads; ++i) running.emplace_back(body, context, i);
  body(context, 0);
  for (std::thread& t : running) t.join();
}

const char* const kKinds[] = {"gaussian", "outliers", "mean", "sparse", "corners", "tiny", "onehot", "zeros"};

// Exactly n * d floats: what is read behind them, a sanitizer sees.
std::vector<float> data(const std::string& kind, int64_t n, int64_t d) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n * d));
  for (float& v : values) v = normal(engine);
  for (int64_t i = 0; i < n; ++i) {
    float* row = values.data() + i * d;
    for (int64_t j = 0; j < d; ++j) {
      if (kind == "outliers" && j % 50 == 3) row[j] *= 300.0f;
      if (kind == "mean") row[j] += 20.0f;
      if (kind == "sparse" && engine() % 10) row[j] = 0.0f;
      // Half a step of the int8 grid away from it, every element in the same direction: errors as large as
      // they get.
      if (kind == "corners") row[j] = j == 0 ? 127.0f : (engine() % 2 ? 1.0f : -1.0f) * 0.4999f;
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

long double norm(const float* a, int64_t d) {
  long double sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += static_cast<long double>(a[i]) * a[i];
  return sqrtl(sum);
}

// |exact - screened| <= bound for every pair: with an open threshold, every pair comes out of the screen.
void check_bounds(const char* kind, int64_t B, int64_t N, int64_t d, Metric metric, ScreenKind screen) {
  const std::vector<float> x = data(kind, B, d), w = data(kind, N, d);
  std::vector<double> bias(static_cast<size_t>(N));
  for (double& b : bias) b = std::normal_distribution<double>()(engine);
  TopkProblem p = problem(x, B, w, N, d, N, metric, metric == Metric::encode ? bias.data() : nullptr);
  p.floor = -std::numeric_limits<double>::infinity();
  const Workers workers{1, run_threads};
  const PackRequest request{p.w, N, d, metric, screen, false};
  Block memory(packed_bytes(request));
  const Packed packed = pack(request, workers, memory.get());
  const ScreenPlan plan(p, packed);
  PackedRows rows;
  rows.pack(plan, 0, B);
  Screening screening;
  screening.begin(plan, rows, nullptr);
  screening.run(0, packed.panels);
  for (int64_t i = 0; i < B; ++i) {
    if (screening.count(i) != N) {
      std::printf("%s: row %d kept %d of %d\n", kind, int(i), int(screening.count(i)), int(N));
      ++failures;
    }
    const long double x_norm = norm(x.data() + i * d, d);
    for (int64_t c = 0; c < screening.count(i); ++c) {
      const int32_t column = screening.column(i)[c], id = packed.row[column];
      const int64_t panel = column / packed.nr;
      long double exact = 0;
      for (int64_t j = 0; j < d; ++j) exact += static_cast<long double>(x[i * d + j]) * w[id * d + j];
      if (metric == Metric::cosine) {
        const long double norms = x_norm * norm(w.data() + id * d, d);
        exact = norms > 0 ? exact / norms : 0;
      }
      if (metric == Metric::encode) exact += bias[id];
      const long double bound = static_cast<long double>(rows.norm[i]) * packed.err[panel] +
                                static_cast<long double>(rows.err[i]) * packed.norm[panel] +
                                plan.slack[panel];
      const long double wrong = fabsl(exact - screening.score(i)[c]);
      if (!(wrong <= bound)) {
        std::printf("%s d=%d metric %d screen %d: off by %Lg, bound %Lg\n", kind, int(d), int(metric),
                    int(screen), wrong, bound);
        ++failures;
        return;
      }
    }
  }
}

// Every screen gives the bytes of the scan.
void check_bytes(const char* kind, int64_t B, int64_t N, int64_t d, int64_t k, Metric metric, int threads) {
  const std::vector<float> x = data(kind, B, d), w = data(kind, N, d);
  const TopkProblem p = problem(x, B, w, N, d, k, metric, nullptr);
  const Workers workers{threads, run_threads};
  const size_t cells = static_cast<size_t>(B * k);
  std::vector<float> wanted(cells), score(cells);
  std::vector<int64_t> wanted_id(cells), id(cells);
  topk(p, nullptr, ScreenChoice::none, workers, {wanted.data(), false, wanted_id.data()}, nullptr);
  for (ScreenChoice choice : {ScreenChoice::f32, ScreenChoice::bf16, ScreenChoice::int8}) {
    topk(p, nullptr, choice, workers, {score.data(), false, id.data()}, nullptr);
    if (std::memcmp(score.data(), wanted.data(), cells * 4) ||
        std::memcmp(id.data(), wanted_id.data(), cells * 8)) {
      std::printf("%s B=%d d=%d metric %d choice %d threads %d: other bytes than the scan\n", kind, int(B),
                  int(d), int(metric), int(choice), threads);
      ++failures;
    }
  }
}

}  // namespace

int main() {
  for (Isa isa : usable_isas()) {
    set_isa(isa_name(isa));
    for (const char* kind : kKinds) {
      for (int64_t d : {1, 15, 64, 130, 257}) {
        for (Metric metric : {Metric::encode, Metric::ip, Metric::cosine}) {
          for (ScreenKind screen : {ScreenKind::f32, ScreenKind::bf16, ScreenKind::int8}) {
            if (screen_available(screen)) check_bounds(kind, 17, 70, d, metric, screen);
          }
        }
      }
      for (Metric metric : {Metric::encode, Metric::cosine}) {
        check_bytes(kind, 130, 1500, 67, 9, metric, 2);
        check_bytes(kind, 11, 1500, 128, 30, metric, 3);
        check_bytes(kind, 1, 1500, 33, 5, metric, 1);
      }
    }
    std::printf("%s: %d failures\n", isa_name(isa), failures);
  }
  return failures != 0;
}
