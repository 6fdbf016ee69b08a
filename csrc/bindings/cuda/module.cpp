// finescope._C_cuda: importing it registers the CUDA operations; its functions say what is inside.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <set>
#include <utility>

#if defined(FINESCOPE_CUDA_ON_CPU)
#include <cuda_runtime.h>
#endif

#include "bindings/cuda/aten.h"
#include "bindings/version.h"
#include "cuda/version.h"

namespace py = pybind11;

namespace {

// Read from the file before it is loaded, as in the CPU object.
[[gnu::used]] const char kStamp[] = FINESCOPE_STAMP;

py::dict versions() {
  py::dict found;
  found["operations"] = FINESCOPE_OPERATIONS_VERSION;
  found["torch_headers"] = TORCH_VERSION;
  found["torch_minimum"] = "2.10";
  found["compiler"] = finescope::cuda::compiler();
  return found;
}

}  // namespace

#if defined(FINESCOPE_CUDA_ON_CPU)
PYBIND11_MODULE(_C_cuda_on_cpu, m)
#else
PYBIND11_MODULE(_C_cuda, m)
#endif
{
  m.doc() = "CUDA operations of FineScope; importing this module registers them with torch.";
  m.def("versions", &versions, "What this object was built with.");
#if defined(FINESCOPE_CUDA_ON_CPU)
  m.def(
      "waits", [] { return std::exchange(cuda_on_cpu::waits, {}); },
      "How often threads waited, by kernel, since the last call.");
  m.def(
      "multiplied", [] { return std::exchange(cuda_on_cpu::multiplied, {}); },
      "How many products were made of rows of each torch dtype number, since the last call.");
  m.def(
      "refuse", [](std::set<int> types) { cuda_on_cpu::refused = std::move(types); },
      "No products of rows of these torch dtype numbers from now on.");
#endif
}
