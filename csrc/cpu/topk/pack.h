// Packing a matrix into panels, a block of rows at a time: into one piece of memory that is kept, or, where the
// panels are read but once, into memory that the next block takes over.
#pragma once

#include <atomic>
#include <vector>

#include "cpu/topk/internal.h"
#include "cpu/topk/quantize.h"

namespace finescope {

// Where the parts of a packed matrix are in its memory.
struct PackLayout {
  int64_t panels, panel_bytes, data, scale, inv_scale, norm, err, valid, row, norm64, centre, along, end;

  // Without its panels, if they aren't kept.
  PackLayout(int64_t n, int64_t d, int64_t units, int nr, bool cosine, bool centred, bool kept = true);
};

class Packer {
 public:
  // Into `memory` of packed_bytes(request); null: into memory of its own, without the panels.
  Packer(const PackRequest& request, int workers, char* memory);
  Packer(const Packer&) = delete;
  Packer& operator=(const Packer&) = delete;

  // Blocks of rows, and the first panel of each; different workers pack different blocks.
  int64_t blocks() const { return (request_.n + tall_ - 1) / tall_; }
  int64_t first_panel(int64_t block) const { return std::min(block * tall_ / kernels_.nr, layout_.panels); }
  // Its panels are written to `panels`.
  void pack(int64_t block, int worker, char* panels);
  // Once all blocks are packed.
  void finish();
  // What is known of the whole matrix is right when that is finished, of a panel when it is packed.
  const Packed& packed() const { return packed_; }
  const PackLayout& layout() const { return layout_; }

 private:
  // Rows of a block, ready to be quantized.
  struct Rows {
    Array<float> data;
    std::vector<float> step, lost;
    std::vector<double> dot;
    std::vector<uint8_t> usable;
    std::vector<int32_t> order;   // in which they become columns
    std::vector<uint32_t> units;  // of a panel's rows

    void resize(int64_t n, int64_t padded, int nr);
  };
  void load(int64_t first, int64_t n, Rows& rows);
  void pack_panel(int64_t panel, int64_t first, const int32_t* order, int64_t n, Rows& rows, char* out);
  template <class T>
  T* array(int64_t offset) {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  const PackRequest request_;
  const TopkKernels& kernels_ = topk_kernels();
  RowQuantizer quantizer_;
  const PackLayout layout_;
  Block own_;
  char* memory_;
  std::vector<double> mean_;
  double squared_mean_ = 0.0;
  int64_t tall_;
  std::vector<Rows> rows_;  // by worker
  std::atomic<bool> finite_{true}, tame_{true};
  Packed packed_{};
};

}  // namespace finescope
