// Room for the gradients of a training step. Memory that the system hands out anew has to be cleared page by
// page first, which costs more than computing the gradient does; so a few blocks that gradients leave behind
// are kept for the next ones. Such tensors can't be resized in place.
#pragma once

#include "bindings/tensors.h"
#include "cpu/spare.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <sys/mman.h>
#endif

namespace finescope {

#if defined(__linux__)

// Blocks of whole huge pages. What is kept is marked as free: the system takes it back when it needs memory,
// and until then writing to it costs nothing.
class Room {
 public:
  static constexpr size_t kHuge = size_t{1} << 21;

  // Never destroyed: tensors may outlive everything.
  static Room& get() {
    static Room* room = new Room;
    return *room;
  }

  // Null if there is no memory.
  void* take(size_t bytes) {
    if (void* kept = kept_.take(bytes)) return kept;
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
    for (const SpareBlocks::Entry& old : kept_.give(data, bytes)) munmap(old.data, old.size);
  }

 private:
  // Idle, the system may take them back, but they count as the process's own until then.
  SpareBlocks kept_{4, size_t{4} << 30};
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
