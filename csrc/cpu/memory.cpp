#include "cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/spare.h"

namespace finescope {
namespace {

constexpr int64_t kHugePage = int64_t{1} << 21;
// What is kept without a thought; larger blocks, packed matrices of calls, are lent to the system.
constexpr size_t kSmall = size_t{32} << 20;
// Blocks lent at most, and their bytes: a process looks as large as they are.
constexpr size_t kLentBlocks = 2, kLent = size_t{1} << 30;

// Never destroyed, since blocks may outlive everything at exit.
SpareBlocks& spare(size_t size) {
  static SpareBlocks* small = new SpareBlocks(SIZE_MAX, kSmall);
  static SpareBlocks* large = new SpareBlocks(kLentBlocks, kLent);
  return size <= kSmall ? *small : *large;
}

// Lets the system take the pages whenever it needs memory; until then they are there without being cleared.
// False where there is no such promise.
bool lend(void* data, size_t size) {
#if defined(__linux__) && defined(MADV_FREE)
  return madvise(data, size, MADV_FREE) == 0;
#else
  (void)data, (void)size;
  return false;
#endif
}

void release(const std::vector<SpareBlocks::Entry>& blocks) {
  for (const SpareBlocks::Entry& block : blocks) std::free(block.data);
}

}  // namespace

Block::Block(int64_t bytes) {
  const bool huge = bytes >= kHugePage;
  const int64_t unit = huge ? kHugePage : 64;
  size_ = static_cast<size_t>((std::max<int64_t>(bytes, 1) + unit - 1) / unit * unit);
  if (huge) {
    data_ = static_cast<char*>(spare(size_).take(size_));
    if (data_ != nullptr) return;
  }
  data_ = static_cast<char*>(std::aligned_alloc(huge ? kHugePage : 64, size_));
  if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Block::~Block() {
  if (data_ == nullptr) return;
  if (size_ < static_cast<size_t>(kHugePage) || (size_ > kSmall && !lend(data_, size_))) {
    std::free(data_);
  } else {
    release(spare(size_).give(data_, size_));
  }
}

}  // namespace finescope
