// Which instruction sets are compiled in, which the CPU has, and which one is used.
#pragma once

#include <string>
#include <vector>

namespace finescope {

// Worst to best on each platform; every level contains the ones before it.
enum class Isa : int { scalar, avx2, avx512, avx512_vnni, avx512_bf16, neon };
inline constexpr int kIsaCount = 6;

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

// One family of kernels, an entry per level; a level without its own variant uses the next lower one.
template <class Kernels>
struct Variants {
  const Kernels* at[kIsaCount];

  const Kernels& active() const {
    int level = static_cast<int>(active_isa());
    if (at[level]) return *at[level];
    // neon stands after the x86 levels but contains only scalar.
    level = active_isa() == Isa::neon ? 0 : level;
    while (!at[level]) --level;
    return *at[level];
  }
};

}  // namespace finescope
