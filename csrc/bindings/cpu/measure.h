// Functions of the module that look at memory and speed rather than compute results.
#pragma once

#include <cstdint>
#include <string>

namespace finescope {

// The fingerprint of `bytes` of memory at `address`; see cpu/fingerprint.h.
uint64_t fingerprint(uintptr_t address, int64_t bytes);

// Multiplies `rows` rows with `columns` columns of random numbers, `depth` elements each, `repeats` times on
// every thread, by a screen's micro-kernel and with a threshold that nothing reaches, so that nothing but the
// products and one comparison of them is computed. Returns the number of multiplications of all threads: the
// benchmarks' limit.
int64_t bare_multiply(const std::string& kind, int64_t rows, int64_t columns, int64_t depth, int64_t repeats);

}  // namespace finescope
