// Launching a kernel, in words that also a compiler for C++ understands.
#pragma once

#include <cuda_runtime.h>

namespace rwkv::cuda {

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), dim3 blocks, int threads, cudaStream_t stream,
           Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace rwkv::cuda
