// finescope._C: what the CPU operations' object says of itself, for one version of Python. The operations are not in
// here, so that the object that has them is the same for all.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "bindings/cpu/interface.h"
#include "version.h"

namespace py = pybind11;

namespace {

[[gnu::used]] const char kStamp[] = FINESCOPE_STAMP;
[[gnu::used]] const char kPybind11[] = FINESCOPE_SAYS(
    "pybind11", PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR));

std::vector<std::string> split(const char* names) {
  std::istringstream text(names);
  std::vector<std::string> found;
  for (std::string name; text >> name;) found.push_back(name);
  return found;
}

void set_isa(const std::string& name) {
  if (finescope_set_isa(name.c_str())) return;
  std::string usable;
  for (const std::string& known : split(finescope_usable_isas()))
    usable += (usable.empty() ? "" : ", ") + known;
  throw py::value_error("the instruction set '" + name + "' is not usable here (usable: " + usable + ")");
}

void set_sparse_way(const std::string& name) {
  if (finescope_set_sparse_way(name.c_str())) return;
  throw py::value_error("searches of packed codes go over 'rows', 'lists' or what is 'sooner', got '" + name +
                        "'");
}

std::vector<int64_t> pair_counts() {
  std::vector<int64_t> counts(3);
  finescope_pair_counts(counts.data());
  return counts;
}

int64_t bare_multiply(const std::string& kind, int64_t rows, int64_t columns, int64_t depth,
                      int64_t repeats) {
  const char* why = "";
  const int64_t made = finescope_bare_multiply(kind.c_str(), rows, columns, depth, repeats, &why);
  if (made >= 0) return made;
  const py::gil_scoped_acquire lock;
  throw py::value_error(why);
}

}  // namespace

PYBIND11_MODULE(_C, m)
{
  m.doc() = "What the compiled CPU operations of FineScope say of themselves.";
  m.def(
      "compiled_isas", [] { return split(finescope_compiled_isas()); },
      "Instruction sets compiled into the operations, worst to best.");
  m.def(
      "usable_isas", [] { return split(finescope_usable_isas()); },
      "Compiled instruction sets that this CPU and operating system support, worst to best.");
  m.def("active_isa", &finescope_active_isa, "The instruction set in use.");
  m.def("set_isa", &set_isa, py::arg("name"),
        "Use another instruction set; ValueError unless it is usable here.");
  m.def("set_sparse_way", &set_sparse_way, py::arg("name"),
        "What searches of packed codes go over: 'rows' as they are, 'lists', or what is 'sooner'.");
  m.def("isa_note", &finescope_isa_note, "What was wrong with FINESCOPE_CPU_ISA, or ''.");
  m.def("num_threads", &finescope_num_threads, "Threads that the operations run on.");
  m.def("pair_counts", &pair_counts,
        "Pairs compared by this process so far: all, left by the first screen, scored in float64.");
  m.def("fingerprint", &finescope_fingerprint, py::arg("address"), py::arg("bytes"),
        py::call_guard<py::gil_scoped_release>(),
        "A number that changes with memory, at the speed of reading it.");
  m.def("bare_multiply", &bare_multiply, py::arg("kind"), py::arg("rows"), py::arg("columns"),
        py::arg("depth"), py::arg("repeats"), py::call_guard<py::gil_scoped_release>(),
        "Run a screen's micro-kernel and nothing else on every thread; returns the multiplications made.");
}
