// CUDA's name for a stream, for files that are compiled without CUDA's headers.
#pragma once

typedef struct CUstream_st* cudaStream_t;
