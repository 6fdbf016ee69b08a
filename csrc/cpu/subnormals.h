// Keeps numbers below the normal range, whatever torch.set_flush_denormal says: results are those of IEEE
// arithmetic in every thread, and torch sets its flag in one of them only.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace finescope {

class KeepSubnormals {
 public:
#if defined(__SSE2__)
  KeepSubnormals() : saved_(_mm_getcsr()) {
    if (saved_ & kFlush) _mm_setcsr(saved_ & ~kFlush);
  }
  ~KeepSubnormals() {
    if (saved_ & kFlush) _mm_setcsr((_mm_getcsr() & ~kFlush) | (saved_ & kFlush));
  }

 private:
  static constexpr unsigned kFlush = 0x8040;  // results to zero, operands to zero
  const unsigned saved_;
#elif defined(__aarch64__)
  KeepSubnormals() : saved_(get()) {
    if (saved_ & kFlush) set(saved_ & ~kFlush);
  }
  ~KeepSubnormals() {
    if (saved_ & kFlush) set((get() & ~kFlush) | (saved_ & kFlush));
  }

 private:
  static constexpr uint64_t kFlush = uint64_t{1} << 24;
  static uint64_t get() {
    uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
  const uint64_t saved_;
#else
  KeepSubnormals() {}
  ~KeepSubnormals() {}

 private:
#endif
  KeepSubnormals(const KeepSubnormals&) = delete;
  KeepSubnormals& operator=(const KeepSubnormals&) = delete;
};

}  // namespace finescope
