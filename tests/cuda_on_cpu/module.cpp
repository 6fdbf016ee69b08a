// The CUDA operations compiled for the CPU, and what their tests ask of them.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <set>
#include <utility>

#include "bindings/cuda/aten.h"

PYBIND11_MODULE(_C_cuda_on_cpu, m)
{
  m.def(
      "waits", [] { return std::exchange(cuda_on_cpu::waits, {}); },
      "How often threads waited, by kernel, since the last call.");
  m.def(
      "multiplied", [] { return std::exchange(cuda_on_cpu::multiplied, {}); },
      "How many products were made of rows of each torch dtype number, since the last call.");
  m.def(
      "refuse", [](std::set<int> types) { cuda_on_cpu::refused = std::move(types); },
      "No products of rows of these torch dtype numbers from now on.");
}
