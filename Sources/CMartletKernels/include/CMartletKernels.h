/// The CUDA sources of Martlet, embedded in the binary: text for NVRTC, no logic.
#pragma once
#include <stddef.h>

typedef struct {
    /// "grouped_gemm_sm90.cu"; headers end in ".cuh".
    const char *name;
    const unsigned char *text;
    size_t byteCount;
} MartletKernelSource;

extern const MartletKernelSource *const martletKernelSources;
extern const size_t martletKernelSourceCount;
