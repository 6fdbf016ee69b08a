#include "cpu/sparse_search/kernels.h"

namespace finescope {

const SparseScreen& sparse_screen() {
  static const Variants<SparseScreen> variants = {{FINESCOPE_VARIANTS(sparse_screen)}};
  return variants.active();
}

}  // namespace finescope
