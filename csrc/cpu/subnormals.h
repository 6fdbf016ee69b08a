// Keeps numbers below the normal range, whatever torch.set_flush_denormal says: results are those of IEEE
// arithmetic in every thread, and torch sets its flag in one of them only.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace finescope {

// The part of the processor's control register that flushes: kFlush, of a register that get and set reach.
namespace rounding_mode {
#if defined(__SSE2__)
constexpr uint64_t kFlush = 0x8040;  // results to zero, operands to zero
inline uint64_t get() {
  return _mm_getcsr();
}
inline void set(uint64_t value) {
  _mm_setcsr(static_cast<unsigned>(value));
}
#elif defined(__aarch64__)
constexpr uint64_t kFlush = uint64_t{1} << 24;
inline uint64_t get() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
inline void set(uint64_t value) {
  asm volatile("msr fpcr, %0" : : "r"(value));
}
#else
constexpr uint64_t kFlush = 0;
inline uint64_t get() {
  return 0;
}
inline void set(uint64_t) {}
#endif
}  // namespace rounding_mode

class KeepSubnormals {
 public:
  KeepSubnormals() : flush_(rounding_mode::get() & rounding_mode::kFlush) {
    if (flush_ != 0) rounding_mode::set(rounding_mode::get() & ~flush_);
  }
  ~KeepSubnormals() {
    if (flush_ != 0) rounding_mode::set(rounding_mode::get() | flush_);
  }
  KeepSubnormals(const KeepSubnormals&) = delete;
  KeepSubnormals& operator=(const KeepSubnormals&) = delete;

 private:
  const uint64_t flush_;
};

}  // namespace finescope
