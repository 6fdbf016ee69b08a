// The version of the set of operations that the objects register. Raise it, here and in
// finescope/ops/native.py, whenever a schema changes, an operation is added or its results change: an object
// left over from an older build is then refused instead of being called with arguments it does not expect.
#pragma once

#define FINESCOPE_OPERATIONS_VERSION 5
#define FINESCOPE_STRING_(x) #x
#define FINESCOPE_STRING(x) FINESCOPE_STRING_(x)
#define FINESCOPE_STAMP "finescope-operations=" FINESCOPE_STRING(FINESCOPE_OPERATIONS_VERSION) ";"
