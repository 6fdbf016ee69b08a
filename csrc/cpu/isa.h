// Which instruction sets are compiled in, which the CPU has, and which one is used.
#pragma once

#include <string>
#include <vector>

namespace finescope {

// Worst to best on each platform.
enum class Isa : int { scalar, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx, neon, neon_dot };
inline constexpr int kIsaCount = 9;

const char* isa_name(Isa isa);

// Compiled into this object, worst to best.
std::vector<Isa> compiled_isas();

// Compiled in and usable here: the CPU has it and the operating system saves its registers.
std::vector<Isa> usable_isas();

// The level in use. Chosen once: FINESCOPE_CPU_ISA if it names a usable level, else the best usable one.
Isa active_isa();

// What was wrong with FINESCOPE_CPU_ISA, or "".
const std::string& isa_note();

// Use another level from now on. False, and nothing changed, unless `name` is usable.
bool set_isa(const std::string& name);

// The next lower level that a level contains. Processors with AVX-512 need not have AVX-VNNI.
constexpr int level_below(int level) {
  return level == static_cast<int>(Isa::neon)     ? static_cast<int>(Isa::scalar)
         : level == static_cast<int>(Isa::avx512) ? static_cast<int>(Isa::avx2)
                                                  : level - 1;
}

// One family of kernels, an entry per level; a level without its own variant uses the next lower one.
template <class Kernels>
struct Variants {
  const Kernels* at[kIsaCount];

  const Kernels& active() const {
    int level = static_cast<int>(active_isa());
    while (!at[level]) level = level_below(level);
    return *at[level];
  }
};

// Entries of such a table: null for a level that is not compiled.
#ifdef FINESCOPE_HAVE_AVX2
#define FINESCOPE_IF_AVX2(entry) entry
#else
#define FINESCOPE_IF_AVX2(entry) nullptr
#endif
#ifdef FINESCOPE_HAVE_AVX512
#define FINESCOPE_IF_AVX512(entry) entry
#else
#define FINESCOPE_IF_AVX512(entry) nullptr
#endif
#ifdef FINESCOPE_HAVE_NEON
#define FINESCOPE_IF_NEON(entry) entry
#else
#define FINESCOPE_IF_NEON(entry) nullptr
#endif
// The whole table, in the common case: each family of registers has its own variant, made from one source.
#define FINESCOPE_VARIANTS(name)                                                                       \
  &scalar::name, FINESCOPE_IF_AVX2(&avx2::name), nullptr, FINESCOPE_IF_AVX512(&avx512::name), nullptr, \
      nullptr, nullptr, FINESCOPE_IF_NEON(&neon::name), nullptr

}  // namespace finescope
