// Memory that calls have given back, for the next call to use: fresh memory has to be cleared by the system
// page by page, which takes as long as filling it does.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace finescope {

// Never waits for its lock: after a fork it may be held by a thread that the child does not have. Whoever
// does not get it does without.
class SpareBlocks {
 public:
  struct Entry {
    void* data;
    size_t size;
  };

  SpareBlocks(size_t most_blocks, size_t most_bytes) : most_blocks_(most_blocks), most_bytes_(most_bytes) {}

  // A block of this very size, or null.
  void* take(size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].size != size) continue;
      void* data = blocks_[i].data;
      blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
      held_ -= size;
      return data;
    }
    return nullptr;
  }

  // Keeps a block; returns those that the caller has to free, the oldest ones, so that the limits hold.
  std::vector<Entry> give(void* data, size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return {{data, size}};
    std::vector<Entry> old;
    blocks_.push_back({data, size});
    held_ += size;
    while (blocks_.size() > most_blocks_ || held_ > most_bytes_) {
      old.push_back(blocks_.front());
      held_ -= blocks_.front().size;
      blocks_.erase(blocks_.begin());
    }
    return old;
  }

 private:
  const size_t most_blocks_, most_bytes_;
  std::mutex mutex_;
  std::vector<Entry> blocks_;
  size_t held_ = 0;
};

}  // namespace finescope
