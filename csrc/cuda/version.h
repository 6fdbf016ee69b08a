// What the kernels were compiled with.
#pragma once

namespace finescope::cuda {

const char* compiler();

}  // namespace finescope::cuda
