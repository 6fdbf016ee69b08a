// finescope._C: importing it registers the CPU operations; its functions say what is inside.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/version.h>
#include <torch/headeronly/version.h>

#include <string>
#include <vector>

#include "bindings/cpu/measure.h"
#include "bindings/version.h"
#include "cpu/isa.h"
#include "cpu/sparse_search/search.h"

namespace py = pybind11;

namespace {

// Read from the file before it is loaded: loading registers operations, and those of another version must not
// be.
[[gnu::used]] const char kStamp[] = FINESCOPE_STAMP;

std::vector<std::string> names(const std::vector<finescope::Isa>& isas) {
  std::vector<std::string> text;
  for (finescope::Isa isa : isas) text.emplace_back(finescope::isa_name(isa));
  return text;
}

void set_isa(const std::string& name) {
  if (finescope::set_isa(name)) return;
  std::string usable;
  for (const std::string& known : names(finescope::usable_isas()))
    usable += (usable.empty() ? "" : ", ") + known;
  throw py::value_error("the instruction set '" + name + "' is not usable here (usable: " + usable + ")");
}

void set_sparse_way(const std::string& name) {
  const std::string known[] = {"sooner", "rows", "lists"};
  for (int way = 0; way < 3; ++way) {
    if (name == known[way]) return finescope::set_sparse_way(static_cast<finescope::SparseWay>(way));
  }
  throw py::value_error("searches of packed codes go over 'rows', 'lists' or what is 'sooner', got '" + name +
                        "'");
}

py::dict versions() {
  py::dict found;
  found["operations"] = FINESCOPE_OPERATIONS_VERSION;
  found["torch_headers"] = TORCH_VERSION;
  found["torch_minimum"] = "2.10";
#if defined(__clang__)
  found["compiler"] = "clang " __clang_version__;
#else
  found["compiler"] = "gcc " __VERSION__;
#endif
  found["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, m)
{
  m.doc() = "Compiled CPU operations of FineScope.";
  m.def(
      "compiled_isas", [] { return names(finescope::compiled_isas()); },
      "Instruction sets compiled into this object, worst to best.");
  m.def(
      "usable_isas", [] { return names(finescope::usable_isas()); },
      "Compiled instruction sets that this CPU and operating system support, worst to best.");
  m.def(
      "active_isa", [] { return std::string(finescope::isa_name(finescope::active_isa())); },
      "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("name"),
        "Use another instruction set; ValueError unless it is usable here.");
  m.def("set_sparse_way", &set_sparse_way, py::arg("name"),
        "What searches of packed codes go over: 'rows' as they are, 'lists', or what is 'sooner'.");
  m.def("isa_note", [] { return finescope::isa_note(); }, "What was wrong with FINESCOPE_CPU_ISA, or ''.");
  m.def(
      "num_threads", [] { return torch::stable::get_num_threads(); }, "Threads that the operations run on.");
  m.def("fingerprint", &finescope::fingerprint, py::arg("address"), py::arg("bytes"),
        py::call_guard<py::gil_scoped_release>(),
        "A number that changes with memory, at the speed of reading it.");
  m.def("bare_multiply", &finescope::bare_multiply, py::arg("kind"), py::arg("rows"), py::arg("columns"),
        py::arg("depth"), py::arg("repeats"), py::call_guard<py::gil_scoped_release>(),
        "Run a screen's micro-kernel and nothing else on every thread; returns the multiplications made.");
  m.def("versions", &versions, "What this object was built with.");
}
