// Room for the gradients of a training step. Memory that the system hands out anew has to be cleared page by
// page first, which costs more than computing the gradient does; so a few blocks that gradients leave behind
// are kept for the next ones. Such tensors can't be resized in place.
#pragma once

#include <mutex>

#include "bindings/tensors.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace finescope {

#if defined(__linux__)

// Blocks of whole huge pages. What is kept is marked as free: the system takes it back when it needs memory,
// and until then writing to it costs nothing.
class Room {
 public:
  static constexpr size_t kHuge = size_t{1} << 21;
  // What is kept at most; idle, the system may take it back, but it counts as the process's own until then.
  static constexpr size_t kKept = 4, kKeptBytes = size_t{4} << 30;

  // Never destroyed: tensors may outlive everything.
  static Room& get() {
    static Room* room = new Room;
    return *room;
  }

  // Null if there is no memory.
  void* take(size_t bytes) {
    {
      // Never waits: after a fork, the lock may be held by a thread that the child does not have.
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      for (size_t i = 0; lock.owns_lock() && i < kept_.size(); ++i) {
        if (kept_[i].bytes != bytes) continue;
        void* data = kept_[i].data;
        kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
        kept_bytes_ -= bytes;
        return data;
      }
    }
    void* whole = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) return nullptr;
    char* begin = static_cast<char*>(whole);
    const size_t skip = (kHuge - reinterpret_cast<uintptr_t>(begin) % kHuge) % kHuge;
    if (skip > 0) munmap(begin, skip);
    munmap(begin + skip + bytes, kHuge - skip);
    madvise(begin + skip, bytes, MADV_HUGEPAGE);  // a hint
    return begin + skip;
  }

  void give(void* data, size_t bytes) {
    madvise(data, bytes, MADV_FREE);
    std::vector<Block> old;
    if (const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock.owns_lock()) {
      kept_.push_back({data, bytes});
      kept_bytes_ += bytes;
      while (kept_.size() > kKept || kept_bytes_ > kKeptBytes) {
        old.push_back(kept_.front());
        kept_bytes_ -= kept_.front().bytes;
        kept_.erase(kept_.begin());
      }
    } else {
      old.push_back({data, bytes});
    }
    for (const Block& block : old) munmap(block.data, block.bytes);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  std::mutex mutex_;
  std::vector<Block> kept_;
  size_t kept_bytes_ = 0;
};

// Tensors of memory that is given back by a function came with torch 2.11; older ones do without. Looked up
// rather than linked: the object has to load with the oldest torch.
using FromBlob = int32_t (*)(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                             int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
                             AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
                             int64_t metadata_size, void (*deleter)(void* data, void* context),
                             void* context);
inline FromBlob from_blob() {
  static const FromBlob found = reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
  return found;
}

// A new matrix on the CPU in a block of its own, or nothing where that is not possible or not worth it.
inline bool take_room(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype, Tensor* out) {
  const size_t size = dtype == ScalarType::Double ? 8 : 4;  // accumulators
  const size_t bytes =
      (static_cast<size_t>(sizes[0] * sizes[1]) * size + Room::kHuge - 1) / Room::kHuge * Room::kHuge;
  if (from_blob() == nullptr || !like.is_cpu() || bytes <= 2 * Room::kHuge) return false;
  void* block = Room::get().take(bytes);
  if (block == nullptr) return false;
  const int64_t strides[] = {sizes[1], 1};
  const auto device = like.device();
  AtenTensorHandle handle;
  const int32_t failed = from_blob()(
      block, 2, sizes.data(), strides, 0,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())), device.index(), &handle,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(torch::headeronly::Layout::Strided)),
      nullptr, 0,
      [](void* data, void* context) { Room::get().give(data, reinterpret_cast<size_t>(context)); },
      reinterpret_cast<void*>(bytes));
  if (failed != 0) {
    Room::get().give(block, bytes);
    return false;
  }
  *out = Tensor(handle);
  return true;
}

#endif

// A matrix of float32 or float64, nothing in it, for a gradient that will be written as a whole.
inline Tensor gradient_room(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
#if defined(__linux__)
  Tensor out;
  if (take_room(like, sizes, dtype, &out)) return out;
#endif
  return empty_like_options(like, sizes, dtype);
}

}  // namespace finescope
