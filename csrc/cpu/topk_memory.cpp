// Memory of the top-k engine.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/spare.h"
#include "cpu/topk_internal.h"

namespace finescope {
namespace {

// Large blocks; never destroyed, since blocks may outlive everything at exit.
SpareBlocks& spare() {
  static SpareBlocks* instance = new SpareBlocks(SIZE_MAX, size_t{32} << 20);
  return *instance;
}

constexpr int64_t kHugePage = int64_t{1} << 21;

}  // namespace

Block::Block(int64_t bytes) {
  const bool huge = bytes >= kHugePage;
  size_ = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), huge ? kHugePage : 64));
  data_ = huge ? static_cast<char*>(spare().take(size_)) : nullptr;
  if (data_ != nullptr) return;
  data_ = static_cast<char*>(std::aligned_alloc(huge ? kHugePage : 64, size_));
  if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Block::~Block() {
  if (data_ == nullptr) return;
  if (size_ >= static_cast<size_t>(kHugePage)) {
    for (const SpareBlocks::Entry& old : spare().give(data_, size_)) std::free(old.data);
  } else {
    std::free(data_);
  }
}

}  // namespace finescope
