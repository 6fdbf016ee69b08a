// Memory that goes back to the system when it is given up: what malloc gets back it may keep, and the process then
// looks as large as all that it ever held at once.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace finescope {

// Of std containers whose elements are plain numbers.
template <class T>
class MappedAllocator {
 public:
  using value_type = T;

  MappedAllocator() = default;
  template <class U>
  MappedAllocator(const MappedAllocator<U>&) {}

  T* allocate(size_t n) {
#if defined(__linux__)
    if (n >= kMapped) {
      void* data = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data == MAP_FAILED) throw std::bad_alloc();
      return static_cast<T*>(data);
    }
#endif
    return static_cast<T*>(::operator new(n * sizeof(T)));
  }

  void deallocate(T* data, size_t n) {
#if defined(__linux__)
    if (n >= kMapped) {
      munmap(data, n * sizeof(T));
      return;
    }
#endif
    ::operator delete(data);
  }

  friend bool operator==(const MappedAllocator&, const MappedAllocator&) { return true; }
  friend bool operator!=(const MappedAllocator&, const MappedAllocator&) { return false; }

 private:
  // Elements from which on a mapping, and the clearing of its pages, costs little beside what is done with them.
  static constexpr size_t kMapped = size_t{1} << 14;
};

}  // namespace finescope
