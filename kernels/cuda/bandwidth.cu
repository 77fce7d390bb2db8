#include "bandwidth.cuh"

#include <algorithm>

#include "device.h"
#include "launch.cuh"
#include "primitives.cuh"

namespace rwkv::cuda {
namespace {

constexpr std::size_t kBytes = 256 << 20;
constexpr int kThreads = 256;
constexpr int kRuns = 10;
const char* const kDoing = "measuring";

__global__ void __launch_bounds__(kThreads) read_kernel(const uint4* from, size_t count, unsigned* out) {
    unsigned found = 0;
    const size_t step = static_cast<size_t>(gridDim.x) * kThreads;
#pragma unroll 8
    for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
        const uint4 piece = __ldcs(from + i);
        found |= piece.x | piece.y | piece.z | piece.w;
    }
    if (found != 0) *out = found;
}

struct Events {
    Events() {
        check(cudaEventCreate(&begin), kDoing);
        check(cudaEventCreate(&end), kDoing);
    }
    ~Events() {
        cudaEventDestroy(begin);
        cudaEventDestroy(end);
    }
    cudaEvent_t begin = nullptr, end = nullptr;
};

}  // namespace

double read_bandwidth() {
    Stream stream;
    stream.make();
    Arena arena;
    arena.take<unsigned char>(kBytes);
    arena.take<unsigned>(1);
    arena.make(stream.get());
    const auto* data = arena.take<uint4>(kBytes / sizeof(uint4));
    auto* out = arena.take<unsigned>(1);
    const Events events;
    double best = 0;
    for (int run = 0; run < kRuns; ++run) {
        check(cudaEventRecord(events.begin, stream.get()), kDoing);
        check(launch(read_kernel, dim3(1024), kThreads, stream.get(), data, kBytes / sizeof(uint4), out),
              kDoing);
        check(cudaEventRecord(events.end, stream.get()), kDoing);
        stream.wait();
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, events.begin, events.end), kDoing);
        best = std::max(best, kBytes / (static_cast<double>(milliseconds) / 1000));
    }
    return best;
}

}  // namespace rwkv::cuda
