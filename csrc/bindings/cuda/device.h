// What every CUDA binding needs: the device and the stream of its tensors.
#pragma once

#if !defined(FINESCOPE_CUDA_ON_CPU)
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include "bindings/tensors.h"
#include "cuda/stream.h"

// The key that the kernels are registered under. The tests compile them for the CPU.
#if defined(FINESCOPE_CUDA_ON_CPU)
#define FINESCOPE_CUDA_KEY CPU
#else
#define FINESCOPE_CUDA_KEY CUDA
#endif

namespace finescope::cuda {

#if defined(FINESCOPE_CUDA_ON_CPU)

class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

#else

// Makes the device of a tensor the current one for its lifetime; stream() is what torch has current there.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {}
  cudaStream_t stream() const { return stream_; }

 private:
  // Looked up when first needed, where torch has it: a torch without CUDA must still be able to load this
  // object, which is then of no use but does no harm.
  static cudaStream_t current_stream(int32_t device) {
    using Get = AOTITorchError (*)(int32_t, void**);
    static const Get get = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return reinterpret_cast<Get>(
          dlsym(library != nullptr ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    }();
    void* stream = nullptr;
    if (get == nullptr || get(device, &stream) != 0) {
      throw std::runtime_error(words("finescope: torch does not say its CUDA stream on device ", device));
    }
    return static_cast<cudaStream_t>(stream);
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

#endif

// Throws if an operation of torch failed. Its own words do not come through its C interface.
template <class... Parts>
void must(AOTITorchError status, const Parts&... what) {
  if (status == TORCH_SUCCESS) return;
  throw std::runtime_error(
      words("finescope: torch could not ", what..., ": out of memory, or what it says in the log"));
}

}  // namespace finescope::cuda
