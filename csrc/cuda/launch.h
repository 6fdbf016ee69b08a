// Launching kernels, and shared memory whose size is known at launch: the two things that CUDA writes in a
// syntax of its own. Everything else in the .cu files is C++, so the tests can compile them for the CPU
// (tests/cuda_on_cpu).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace finescope::cuda {

// Shared memory of a block on every GPU without asking for more is 48 KiB; kernels declare less than 4 KiB of
// it themselves, beside what they are launched with.
inline constexpr size_t kPlainShared = size_t{44} << 10;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

#if defined(__CUDACC__)

#define FINESCOPE_SHARED(type, name)                          \
  extern __shared__ __align__(16) unsigned char name##_raw[]; \
  type* const name = reinterpret_cast<type*>(name##_raw)

template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > kPlainShared) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          what);
  }
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), what);
}

#else

#define FINESCOPE_SHARED(type, name) type* const name = static_cast<type*>(cuda_on_cpu::dynamic_shared())

template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
            cudaStream_t, Arguments... arguments) {
  cuda_on_cpu::run(what, grid, block, shared, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

#endif

}  // namespace finescope::cuda
