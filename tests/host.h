// What the host programs share: numbers that are the same on every machine, threads, failures, and a checksum
// of all results, by which runs on different machines are compared.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/isa.h"

namespace host {

// The standard's distributions differ between libraries, and log and cos between machines.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  // Twelve uniform numbers of 16 bits: mean 0, variance 1, and exact in float32.
  float normal() {
    int64_t sum = 0;
    for (int i = 0; i < 3; ++i) {
      const uint64_t bits = next();
      for (int part = 0; part < 4; ++part) sum += (bits >> (16 * part)) & 0xffff;
    }
    return static_cast<float>(sum - 6 * 65535) / 65536.0f;
  }

 private:
  uint64_t state_;
};

inline Random random{1};
inline int failures = 0;
inline uint64_t checksum = 0;

// Prints what is wrong, the first twenty times.
__attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  if (failures++ >= 20) return;
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
}

// Takes results into the checksum.
inline void record(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    checksum = (checksum ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  }
}

inline void run_threads(int threads, void (*body)(void*, int), void* context) {
  std::vector<std::thread> running;
  for (int i = 1; i < threads; ++i) running.emplace_back(body, context, i);
  body(context, 0);
  for (std::thread& t : running) t.join();
}

// The definition of dense scores: 16 partial sums, lane l over d = l, l + 16, ...; then halved 8, 4, 2, 1.
template <class X, class W>
double fixed_order_dot(int64_t D, X x, W w) {
  double sum[16] = {};
  for (int64_t d = 0; d < D; ++d) sum[d % 16] += x(d) * w(d);
  for (int half = 8; half >= 1; half /= 2) {
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  }
  return sum[0];
}

// Runs `checks` for every instruction set of this machine; a line for each says what came out.
template <class Checks>
int run(Checks checks) {
  for (finescope::Isa isa : finescope::usable_isas()) {
    finescope::set_isa(finescope::isa_name(isa));
    random = Random(1);
    checksum = 0xcbf29ce484222325u;
    checks();
    std::printf("%s: %d failures, results %016llx\n", finescope::isa_name(isa), failures,
                static_cast<unsigned long long>(checksum));
  }
  return failures != 0;
}

}  // namespace host
