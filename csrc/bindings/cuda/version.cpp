// What this object was built with.
#include "version.h"

#include <torch/headeronly/version.h>

namespace {

[[gnu::used]] const char kStamp[] = FINESCOPE_STAMP;
[[gnu::used]] const char kTorch[] = FINESCOPE_TORCH_STAMP;

}  // namespace
