#include "cpu/isa.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace finescope {
namespace {

constexpr const char* kNames[kIsaCount] = {"scalar",      "avx2", "avx_vnni", "avx512",  "avx512_vnni",
                                           "avx512_bf16", "amx",  "neon",     "neon_dot"};

#if defined(__x86_64__)

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool has(uint32_t word, int bit) {
  return (word >> bit) & 1u;
}

// The state components that the operating system saves on a context switch. Without this check a CPU that has
// AVX-512 under a system that does not save zmm registers would corrupt results, or fault.
uint64_t saved_state(const Registers& leaf1) {
  if (!has(leaf1.c, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux gives a process the tiles of AMX when it asks for them.
bool tiles_allowed() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return allowed;
#else
  return false;
#endif
}

// Each feature is asked for by itself: no level is inferred from the name of a CPU.
bool cpu_has(Isa isa) {
  const Registers leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf7_1 = cpuid(7, 1),
                  extended = cpuid(0x80000001, 0);
  const uint64_t state = saved_state(leaf1);
  const bool ymm = (state & 0x06) == 0x06, zmm = (state & 0xe6) == 0xe6;
  const bool avx2 = ymm && has(leaf1.c, 12) /* fma */ && has(leaf1.c, 23) /* popcnt */ &&
                    has(leaf1.c, 28) /* avx */ && has(leaf1.c, 29) /* f16c */ && has(leaf7.b, 3) /* bmi1 */ &&
                    has(leaf7.b, 5) /* avx2 */ && has(leaf7.b, 8) /* bmi2 */ &&
                    has(extended.c, 5) /* lzcnt */;
#if defined(FINESCOPE_AVX512_ON_CPU)  // tests/avx512_on_cpu: compiled for AVX2, whatever their name
  return isa <= Isa::amx && (isa == Isa::scalar || avx2);
#endif
  const bool avx512 = avx2 && zmm && has(leaf7.b, 16) /* f */ && has(leaf7.b, 17) /* dq */ &&
                      has(leaf7.b, 28) /* cd */ && has(leaf7.b, 30) /* bw */ && has(leaf7.b, 31) /* vl */;
  const bool vnni = avx512 && has(leaf7.c, 11);
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx_vnni:
      return avx2 && has(leaf7_1.a, 4);
    case Isa::avx512:
      return avx512;
    case Isa::avx512_vnni:
      return vnni;
    case Isa::avx512_bf16:
      return vnni && has(leaf7_1.a, 5);
    case Isa::amx:
      return vnni && has(leaf7_1.a, 5) && (state & 0x60000) == 0x60000 && has(leaf7.d, 22) /* bf16 */ &&
             has(leaf7.d, 24) /* tile */ && has(leaf7.d, 25) /* int8 */ && tiles_allowed();
    default:
      return false;
  }
}

#elif defined(__aarch64__)
bool cpu_has(Isa isa) {
  // NEON is part of the architecture; what came later, the system tells. Bits of AT_HWCAP: ASIMDDP, and what
  // else the compiler may use in files for ARMv8.2 (CRC32, ATOMICS, ASIMDRDM).
  constexpr unsigned long kDotProducts = 1ul << 20 | 1ul << 12 | 1ul << 8 | 1ul << 7;
  if (isa == Isa::neon_dot) return (getauxval(AT_HWCAP) & kDotProducts) == kDotProducts;
  return isa == Isa::scalar || isa == Isa::neon;
}
#else
bool cpu_has(Isa isa) {
  return isa == Isa::scalar;
}
#endif

std::string listed(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

struct State {
  std::atomic<int> active;
  std::string note;

  State() {
    const std::vector<Isa> usable = usable_isas();
    Isa chosen = usable.back();
    const char* wanted = std::getenv("FINESCOPE_CPU_ISA");
    if (wanted != nullptr && *wanted != '\0') {
      bool found = false;
      for (Isa isa : usable) {
        if (isa_name(isa) == std::string(wanted)) chosen = isa, found = true;
      }
      if (!found) {
        note = "FINESCOPE_CPU_ISA=" + std::string(wanted) + " is not usable here (usable: " + listed(usable) +
               "); using " + isa_name(chosen);
      }
    }
    active = static_cast<int>(chosen);
  }
};

State& state() {
  static State instance;
  return instance;
}

}  // namespace

const char* isa_name(Isa isa) {
  return kNames[static_cast<int>(isa)];
}

std::vector<Isa> compiled_isas() {
  return {
      Isa::scalar,
#ifdef FINESCOPE_HAVE_AVX2
      Isa::avx2,
#endif
#ifdef FINESCOPE_HAVE_AVX_VNNI
      Isa::avx_vnni,
#endif
#ifdef FINESCOPE_HAVE_AVX512
      Isa::avx512,
#endif
#ifdef FINESCOPE_HAVE_AVX512_VNNI
      Isa::avx512_vnni,
#endif
#ifdef FINESCOPE_HAVE_AVX512_BF16
      Isa::avx512_bf16,
#endif
#ifdef FINESCOPE_HAVE_AMX
      Isa::amx,
#endif
#ifdef FINESCOPE_HAVE_NEON
      Isa::neon,
#endif
#ifdef FINESCOPE_HAVE_NEON_DOT
      Isa::neon_dot,
#endif
  };
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable;
  for (Isa isa : compiled_isas()) {
    if (cpu_has(isa)) usable.push_back(isa);
  }
  return usable;
}

Isa active_isa() {
  return static_cast<Isa>(state().active.load(std::memory_order_relaxed));
}

const std::string& isa_note() {
  return state().note;
}

bool set_isa(const std::string& name) {
  for (Isa isa : usable_isas()) {
    if (isa_name(isa) == name) {
      state().active.store(static_cast<int>(isa), std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace finescope
