// Memory of the top-k engine.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/topk_internal.h"

namespace finescope {
namespace {

// Large blocks that calls have given back, for the next call to use: fresh memory has to be cleared by the
// system page by page, which takes as long as packing into it.
class Spare {
 public:
  char* take(size_t size) {
    std::lock_guard<std::mutex> guard(lock_);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].size != size) continue;
      char* p = blocks_[i].p;
      blocks_.erase(blocks_.begin() + static_cast<int64_t>(i));
      held_ -= size;
      return p;
    }
    return nullptr;
  }
  void give(char* p, size_t size) {
    std::lock_guard<std::mutex> guard(lock_);
    blocks_.push_back({p, size});
    held_ += size;
    while (held_ > kMost) {
      std::free(blocks_.front().p);
      held_ -= blocks_.front().size;
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  static constexpr size_t kMost = size_t{32} << 20;
  struct Entry {
    char* p;
    size_t size;
  };
  std::mutex lock_;
  std::vector<Entry> blocks_;
  size_t held_ = 0;
};

Spare& spare() {
  static Spare* instance = new Spare;  // never destroyed: blocks may outlive it at exit
  return *instance;
}

constexpr int64_t kHugePage = int64_t{1} << 21;

}  // namespace

Block::Block(int64_t bytes) {
  const bool huge = bytes >= kHugePage;
  size_ = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), huge ? kHugePage : 64));
  data_ = huge ? spare().take(size_) : nullptr;
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
    spare().give(data_, size_);
  } else {
    std::free(data_);
  }
}

}  // namespace finescope
