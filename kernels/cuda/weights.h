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
    const uint32_t* pairs = nullptr;
    int rows = 0, tiles = 0, groups = 0;
};

// Asks an arena for the memory of matrices and vectors, and fills it once it is there: every call
// takes the same memory in both of its lives.
class Loader {
public:
    Loader(Arena& arena, cudaStream_t stream) : arena_(arena), stream_(stream) {}
    ~Loader();
    Loader(const Loader&) = delete;
    Loader& operator=(const Loader&) = delete;

    // Bytes that filling will need for itself, once everything was measured.
    std::size_t staging() const { return staging_bytes_; }
    // From here on the arena has its memory.
    void fill();

    // What they copy must be there until `finish`.
    DeviceMatrix matrix(const Matrix& from);
    // Rows [first, last) of a matrix that is not in q4.
    DeviceMatrix part(const Matrix& from, std::size_t first, std::size_t last);
    Value value(const Matrix& from);
    const float* vector(const Vector& from);
    NormVectors norm(const Norm& from);

    // Waits for the last copies.
    void finish();

private:
    // The first `skipped` rows of its first tile are not its own.
    DeviceMatrix matrix_q8(const Matrix& from, std::size_t skipped);
    DeviceMatrix matrix_q4(const Matrix& from);
    const float* floats(const unsigned char* from, std::size_t count);
    template <typename Take>
    void in_pieces(const unsigned char* from, std::size_t rows, std::size_t row_bytes, Take take);

    Arena& arena_;
    cudaStream_t stream_;
    std::size_t staging_bytes_ = 0;
    void* staging_ = nullptr;  // null while the arena measures
};

}  // namespace rwkv::cuda
