#include "device.h"

#include <cstdio>

#include "api.h"

namespace rwkv::cuda {

void check(int error, const char* doing) {
    const auto code = static_cast<cudaError_t>(error);
    if (code == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());
    const std::string reason = cudaGetErrorString(code);
    switch (code) {
        case cudaErrorNoDevice:
        case cudaErrorInsufficientDriver:
        case cudaErrorInvalidDevice:
            throw Failure{RWKV_CUDA_NO_DEVICE, "There is no GPU that CUDA can use: " + reason + "."};
        case cudaErrorMemoryAllocation:
            throw Failure{RWKV_CUDA_MEMORY, std::string("The memory of the GPU is full (") + doing + ")."};
        default:
            throw Failure{RWKV_CUDA_LOST, std::string("The GPU failed (") + doing + "): " + reason + "."};
    }
}

void refuse(const std::string& sentence) { throw Failure{RWKV_CUDA_REFUSED, sentence}; }

std::string gibibytes(std::uint64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
    return text;
}

Arena::~Arena() {
    for (void* memory : made_) cudaFree(memory);
}

void* Arena::take_bytes(std::size_t bytes) {
    if (bytes == 0) return nullptr;
    if (!making_) {
        measured_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
        return nullptr;
    }
    made_.push_back(nullptr);
    check(cudaMalloc(&made_.back(), bytes), "making room for the model");
    check(cudaMemsetAsync(made_.back(), 0, bytes, stream_), "making room for the model");
    return made_.back();
}

void Arena::make(cudaStream_t stream, std::size_t more) {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for its memory");
    if (measured_ + more > free) {
        throw Failure{RWKV_CUDA_MEMORY, "The model needs " + gibibytes(measured_ + more) +
                                            " of the GPU's memory, of which " + gibibytes(free) +
                                            " are free."};
    }
    making_ = true;
    stream_ = stream;
}

Pinned::~Pinned() { cudaFreeHost(data_); }

void Pinned::make(std::size_t bytes) {
    check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "making room for what it is told");
}

Stream::~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void Stream::make() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "starting to work");
}

void Stream::wait() const { check(cudaStreamSynchronize(stream_), "computing"); }

}  // namespace rwkv::cuda
