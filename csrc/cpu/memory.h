// Memory on whole huge pages where it is large: what an engine streams would miss the TLB on small ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace finescope {

class Block {
 public:
  Block() = default;
  explicit Block(int64_t bytes);
  Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Block();
  char* get() const { return data_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Memory for n elements, not cleared.
template <class T>
class Array {
 public:
  void resize(int64_t n) {
    size_ = n;
    if (n <= reserved_) return;
    memory_ = Block();
    memory_ = Block(n * static_cast<int64_t>(sizeof(T)));
    reserved_ = n;
  }
  int64_t size() const { return size_; }
  T* data() { return reinterpret_cast<T*>(memory_.get()); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return reinterpret_cast<const T*>(memory_.get())[i]; }

 private:
  Block memory_;
  int64_t size_ = 0, reserved_ = 0;
};

}  // namespace finescope
