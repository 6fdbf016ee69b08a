// What is written into every native object, to be read from the file before it is loaded: loading registers
// operations, and those of another version must not be.
//
// The version of the set of operations: raise it, here and in finescope/ops/native.py, whenever a schema changes, an
// operation is added, its results change or bindings/cpu/interface.h does: an object left over from an older build is
// then refused instead of being called with arguments it does not expect.
#pragma once

#define FINESCOPE_OPERATIONS_VERSION 7
#define FINESCOPE_STRING_(x) #x
#define FINESCOPE_STRING(x) FINESCOPE_STRING_(x)
#define FINESCOPE_SAYS(name, text) "finescope-" name "=" text ";"
#define FINESCOPE_STAMP FINESCOPE_SAYS("operations", FINESCOPE_STRING(FINESCOPE_OPERATIONS_VERSION))
#define FINESCOPE_TORCH_STAMP FINESCOPE_SAYS("torch_headers", TORCH_VERSION)
