#include "bindings/cpu/measure.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "bindings/cpu/parallel.h"
#include "bindings/search.h"
#include "cpu/fingerprint.h"
#include "cpu/topk/screen.h"

namespace finescope {

uint64_t fingerprint(uintptr_t address, int64_t bytes) {
  const char* data = reinterpret_cast<const char*>(address);
  std::atomic<uint64_t> sum{0};
  // Less than this is read before another thread has woken up.
  constexpr int64_t kGrain = 16;
  parallel((bytes + kFingerprintChunk - 1) / kFingerprintChunk, kGrain, [&](int64_t begin, int64_t end) {
    uint64_t part = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * kFingerprintChunk;
      part += fingerprint_chunk(data + at, std::min(kFingerprintChunk, bytes - at), i);
    }
    sum += part;
  });
  return sum;
}

int64_t bare_multiply(const std::string& kind, int64_t rows, int64_t columns, int64_t depth,
                      int64_t repeats) {
  const char* op = "bare_multiply";
  const ScreenChoice choice = screen_choice(kind, op);
  check(rows > 0 && columns > 0 && depth > 0 && repeats >= 0, op, ": sizes must be positive");
  std::vector<float> x(static_cast<size_t>(rows * depth)), w(static_cast<size_t>(columns * depth));
  uint32_t state = 1;
  for (std::vector<float>* side : {&x, &w}) {
    for (float& value : *side) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
  }
  const ScreenKind best = best_screen(choice,
                                      {{x.data(), depth, DType::f32},
                                       {w.data(), depth, DType::f32},
                                       rows,
                                       columns,
                                       depth,
                                       Metric::ip,
                                       nullptr,
                                       0.002},
                                      torch_workers());
  // 16 bits are whole numbers where there is a screen of them.
  const bool words = choice == ScreenChoice::bf16 && best == ScreenKind::int16;
  check(choice == ScreenChoice::automatic || words ||
            (choice != ScreenChoice::none && static_cast<int>(best) == static_cast<int>(choice) - 2),
        op, ": this instruction set has no screen of kind '", kind, "'");
  const PackRequest request{{w.data(), depth, DType::f32}, columns, depth, Metric::ip, best};
  check(can_pack(request), op, ": ", columns, " columns of depth ", depth, " can't be packed");
  const Block memory(packed_bytes(request));
  const Workers workers = torch_workers();
  const Packed packed = pack(request, workers, memory.get());
  TopkProblem problem{};
  problem.x = {x.data(), depth, DType::f32};
  problem.w = request.w;
  problem.B = rows;
  problem.N = columns;
  problem.d = depth;
  problem.k = 1;
  problem.metric = Metric::ip;
  problem.floor = 0x1p100;  // a threshold beyond reach is closed from the start
  const ScreenPlan plan(problem, packed);
  PackedRows packed_rows;
  packed_rows.pack(plan, 0, rows);
  struct Work {
    const ScreenPlan& plan;
    const PackedRows& rows;
    int64_t repeats;
  } work{plan, packed_rows, repeats};
  const auto run = [](void* context, int) {
    const Work& w = *static_cast<const Work*>(context);
    Screening screening;
    screening.begin(w.plan, w.rows, nullptr);
    for (int64_t i = 0; i < w.repeats; ++i) screening.run(0, w.plan.packed.panels);
  };
  workers.run(workers.threads, run, &work);
  return rows * columns * depth * repeats * workers.threads;
}

}  // namespace finescope
