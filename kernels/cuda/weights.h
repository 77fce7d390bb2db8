// From the weights of rwkv/weights.h to those on the device.
#pragma once

#include <vector>

#include "device.h"
#include "matmul.cuh"
#include "mixing.cuh"
#include "rwkv/weights.h"
#include "value.cuh"

namespace rwkv::cuda {

// A matrix for `multiply`.
struct DeviceMatrix {
    const uint4* weights = nullptr;
    const float* scales = nullptr;
    int rows = 0, tiles = 0, groups = 0;
};

// Asks an arena for the memory of matrices and vectors, and fills it once it is there: every call
// takes the same memory in both of its lives.
class Loader {
public:
    Loader(Arena& arena, cudaStream_t stream) : arena_(arena), stream_(stream) {}

    // False while the arena measures.
    void filling(bool on);

    DeviceMatrix matrix(const Matrix& from);
    Value value(const Matrix& from);
    const float* vector(const Vector& from);
    NormVectors norm(const Norm& from);

    // Waits for the last copies, and frees what they needed.
    void finish();

private:
    const float* floats(const unsigned char* from, std::size_t count);
    template <typename Take>
    void in_pieces(const Matrix& from, Take take);

    Arena& arena_;
    cudaStream_t stream_;
    bool filling_ = false;
    void* staging_ = nullptr;
};

}  // namespace rwkv::cuda
