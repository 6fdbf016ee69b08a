// What the operations' object offers besides its operations, in plain C: it is one object for every Python, and nothing
// of C++ passes between it and the module that a Python imports. csrc/exports.map lets these names out, and no others.
#pragma once

#include <cstdint>

#define FINESCOPE_EXPORT extern "C" __attribute__((visibility("default")))

// Names of instruction sets, worst to best, with a space between two: those compiled into the object, those of them
// that this CPU and operating system support, the one in use.
FINESCOPE_EXPORT const char* finescope_compiled_isas();
FINESCOPE_EXPORT const char* finescope_usable_isas();
FINESCOPE_EXPORT const char* finescope_active_isa();

// What was wrong with FINESCOPE_CPU_ISA, or "".
FINESCOPE_EXPORT const char* finescope_isa_note();

// Use another instruction set from now on. False, and nothing changed, unless it is usable.
FINESCOPE_EXPORT bool finescope_set_isa(const char* name);

// What searches of packed codes go over: "rows" as they are, "lists", or what is "sooner". False, and nothing changed,
// for any other name.
FINESCOPE_EXPORT bool finescope_set_sparse_way(const char* name);

// Threads that the operations run on: torch's.
FINESCOPE_EXPORT int finescope_num_threads();

// How many pairs the searches and encoders of this process have compared so far: of all, those that the first screen
// couldn't rule out, and those scored in float64; see cpu/counts.h.
FINESCOPE_EXPORT void finescope_pair_counts(int64_t counts[3]);

// The fingerprint of `bytes` of memory at `address`; see cpu/fingerprint.h.
FINESCOPE_EXPORT uint64_t finescope_fingerprint(uintptr_t address, int64_t bytes);

// Multiplies `rows` rows with `columns` columns of random numbers, `depth` elements each, `repeats` times on every
// thread, by a screen's micro-kernel and with a threshold that nothing reaches, so that nothing but the products and
// one comparison of them is computed: the benchmarks' limit. Returns the number of multiplications of all threads; -1
// where that can't be done, and `why` in words, which the thread's next call overwrites.
FINESCOPE_EXPORT int64_t finescope_bare_multiply(const char* kind, int64_t rows, int64_t columns,
                                                 int64_t depth, int64_t repeats, const char** why);
