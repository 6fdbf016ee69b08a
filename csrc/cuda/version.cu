// What the kernels were compiled with.
#include "cuda/version.h"

namespace finescope::cuda {

#define FINESCOPE_TEXT_(x) #x
#define FINESCOPE_TEXT(x) FINESCOPE_TEXT_(x)

const char* compiler() {
#if defined(__CUDACC_VER_MAJOR__)
  return "nvcc " FINESCOPE_TEXT(__CUDACC_VER_MAJOR__) "." FINESCOPE_TEXT(__CUDACC_VER_MINOR__);
#else
  return "no nvcc: compiled for the CPU";
#endif
}

}  // namespace finescope::cuda
