// What the kernels were compiled with, to be read from the file.
#include "version.h"

#if defined(__CUDACC_VER_MAJOR__)
#define FINESCOPE_COMPILER \
  "nvcc " FINESCOPE_STRING(__CUDACC_VER_MAJOR__) "." FINESCOPE_STRING(__CUDACC_VER_MINOR__)
#else
#define FINESCOPE_COMPILER "no nvcc: compiled for the CPU"
#endif

[[gnu::used]] static const char kCompiler[] = FINESCOPE_SAYS("compiler", FINESCOPE_COMPILER);
