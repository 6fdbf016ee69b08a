// Functions that look at memory and speed rather than compute results; interface.h says what they do.
#pragma once

#include <cstdint>
#include <string>

namespace finescope {

uint64_t fingerprint(uintptr_t address, int64_t bytes);
int64_t bare_multiply(const std::string& kind, int64_t rows, int64_t columns, int64_t depth, int64_t repeats);

}  // namespace finescope
