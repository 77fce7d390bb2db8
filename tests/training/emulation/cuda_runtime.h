// A GPU made of threads, to run CUDA kernels where there is none: blocks one after the other, every
// thread of a block a thread of the system. Only what kernels/training/wkv7.cu uses.

#pragma once

#include <pthread.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

struct dim3 {
  unsigned x;
  dim3(unsigned count = 1) : x(count) {}
};

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline thread_local dim3 threadIdx, blockIdx;
inline pthread_barrier_t* barrier_of_block;

inline void __syncthreads() { pthread_barrier_wait(barrier_of_block); }

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const unsigned count = config->blockDim.x;
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, count);
  barrier_of_block = &barrier;
  std::vector<std::thread> threads;
  for (unsigned id = 0; id < count; ++id) {
    threads.emplace_back([=, &barrier] {
      threadIdx.x = id;
      for (unsigned block = 0; block < config->gridDim.x; ++block) {
        blockIdx.x = block;
        kernel(arguments...);
        pthread_barrier_wait(&barrier);  // shared memory is that of one block
      }
    });
  }
  for (auto& thread : threads) thread.join();
  pthread_barrier_destroy(&barrier);
  return cudaSuccess;
}
