#include "bindings/cpu/interface.h"

#include <torch/headeronly/version.h>

#include <exception>
#include <string>
#include <vector>

#include "bindings/cpu/measure.h"
#include "bindings/cpu/parallel.h"
#include "cpu/counts.h"
#include "cpu/isa.h"
#include "cpu/sparse_search/search.h"
#include "version.h"

namespace {

[[gnu::used]] const char kStamp[] = FINESCOPE_STAMP;
[[gnu::used]] const char kTorch[] = FINESCOPE_TORCH_STAMP;
#if defined(__clang__)
[[gnu::used]] const char kCompiler[] = FINESCOPE_SAYS("compiler", "clang " __clang_version__);
#else
[[gnu::used]] const char kCompiler[] = FINESCOPE_SAYS("compiler", "gcc " __VERSION__);
#endif

std::string names(const std::vector<finescope::Isa>& isas) {
  std::string text;
  for (finescope::Isa isa : isas) text += (text.empty() ? "" : " ") + std::string(finescope::isa_name(isa));
  return text;
}

}  // namespace

const char* finescope_compiled_isas() {
  static const std::string text = names(finescope::compiled_isas());
  return text.c_str();
}

const char* finescope_usable_isas() {
  static const std::string text = names(finescope::usable_isas());
  return text.c_str();
}

const char* finescope_active_isa() {
  return finescope::isa_name(finescope::active_isa());
}

const char* finescope_isa_note() {
  return finescope::isa_note().c_str();
}

bool finescope_set_isa(const char* name) {
  return finescope::set_isa(name);
}

bool finescope_set_sparse_way(const char* name) {
  const std::string known[] = {"sooner", "rows", "lists"};
  for (int way = 0; way < 3; ++way) {
    if (name != known[way]) continue;
    finescope::set_sparse_way(static_cast<finescope::SparseWay>(way));
    return true;
  }
  return false;
}

int finescope_num_threads() {
  return finescope::num_threads();
}

void finescope_pair_counts(int64_t counts[3]) {
  const finescope::PairCounts& held = finescope::pair_counts;
  counts[0] = held.all, counts[1] = held.passed, counts[2] = held.exact;
}

uint64_t finescope_fingerprint(uintptr_t address, int64_t bytes) {
  return finescope::fingerprint(address, bytes);
}

int64_t finescope_bare_multiply(const char* kind, int64_t rows, int64_t columns, int64_t depth,
                                int64_t repeats, const char** why) {
  static thread_local std::string words;
  try {
    return finescope::bare_multiply(kind, rows, columns, depth, repeats);
  } catch (const std::exception& error) {
    words = error.what();
    *why = words.c_str();
    return -1;
  }
}
