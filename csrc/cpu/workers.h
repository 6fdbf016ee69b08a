// Threads as the engines see them.
#pragma once

#include <atomic>
#include <cstdint>

namespace finescope {

// Runs body(context, worker) once for each worker in 0..threads-1, possibly at the same time.
struct Workers {
  int threads;
  void (*run)(int threads, void (*body)(void* context, int worker), void* context);
};

// Tasks 0..n-1, each taken by the next free worker: body(task, worker).
template <class Body>
void for_each(const Workers& workers, int64_t n, const Body& body) {
  if (n <= 0) return;
  struct Context {
    const Body& body;
    std::atomic<int64_t> next{0};
    int64_t n;
  } context{body, {0}, n};
  const auto run = [](void* p, int worker) {
    Context& c = *static_cast<Context*>(p);
    for (int64_t task = c.next++; task < c.n; task = c.next++) c.body(task, worker);
  };
  if (workers.threads == 1 || n == 1) {
    run(&context, 0);
  } else {
    workers.run(workers.threads < n ? workers.threads : static_cast<int>(n), run, &context);
  }
}

}  // namespace finescope
