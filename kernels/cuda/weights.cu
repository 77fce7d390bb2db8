#include "weights.h"

#include <algorithm>

#include "../src/elements.h"

namespace rwkv::cuda {
namespace {

constexpr std::size_t kStaging = 32 << 20;
const char* const kDoing = "loading the model";

void check_type(const Matrix& matrix) {
    if (matrix.weights == Weights::bf16 || matrix.weights == Weights::q8) return;
    refuse("The GPU computes with bf16 and q8 weights only. Use --weights bf16.");
}

}  // namespace

Loader::~Loader() { cudaFree(staging_); }

void Loader::fill() { check(cudaMalloc(&staging_, staging_bytes_), kDoing); }

void Loader::finish() { check(cudaStreamSynchronize(stream_), kDoing); }

// Calls take(rows in staging, first row, count) for pieces of the matrix that fit into it.
template <typename Take>
void Loader::in_pieces(const Matrix& from, Take take) {
    const std::size_t row_bytes = from.columns * bytes_of(from.weights);
    const std::size_t rows = std::min(std::max<std::size_t>(1, kStaging / row_bytes), from.rows);
    if (staging_ == nullptr) {
        staging_bytes_ = std::max(staging_bytes_, rows * row_bytes);
        return;
    }
    for (std::size_t first = 0; first < from.rows; first += rows) {
        const std::size_t count = std::min(rows, from.rows - first);
        check(cudaMemcpyAsync(staging_, row_of(from, first), count * row_bytes, cudaMemcpyHostToDevice,
                              stream_), kDoing);
        check(take(static_cast<int>(first), static_cast<int>(count)), kDoing);
    }
}

const float* Loader::floats(const unsigned char* from, std::size_t count) {
    float* to = arena_.take<float>(count);
    if (staging_ != nullptr) {
        check(cudaMemcpyAsync(to, from, count * sizeof(float), cudaMemcpyHostToDevice, stream_), kDoing);
    }
    return to;
}

DeviceMatrix Loader::matrix(const Matrix& from) {
    check_type(from);
    const int rows = static_cast<int>(from.rows), columns = static_cast<int>(from.columns);
    const int bytes = static_cast<int>(bytes_of(from.weights));
    const std::size_t size = static_cast<std::size_t>(divide_up(rows, kTile)) * kTile *
                             tiles_of(columns) * kTile * bytes;
    auto* weights = arena_.take<unsigned char>(size);
    DeviceMatrix result{reinterpret_cast<const uint4*>(weights), nullptr, rows, tiles_of(columns),
                        static_cast<int>(groups_of(from.columns))};
    if (from.weights == Weights::q8) {
        result.scales = floats(from.scales, from.rows * groups_of(from.columns));
    }
    in_pieces(from, [&](int first, int count) {
        return pack(staging_, count, columns, first, bytes, weights, stream_);
    });
    return result;
}

Value Loader::value(const Matrix& from) {
    check_type(from);
    const int columns = static_cast<int>(from.columns);
    const int pitch = divide_up(columns, kValueColumns) * kValueColumns;
    const std::size_t bytes = bytes_of(from.weights);
    auto* weights = arena_.take<unsigned char>(from.rows * pitch * bytes);
    Value result{weights, nullptr, static_cast<int>(from.rows), columns, pitch, pitch / kValueColumns};
    if (from.weights == Weights::q8) {
        result.scales = floats(from.scales, from.rows * groups_of(from.columns));
    }
    in_pieces(from, [&](int first, int count) -> int {
        return cudaMemcpy2DAsync(weights + static_cast<std::size_t>(first) * pitch * bytes, pitch * bytes,
                                 staging_, columns * bytes, columns * bytes,
                                 static_cast<std::size_t>(count), cudaMemcpyDeviceToDevice, stream_);
    });
    return result;
}

const float* Loader::vector(const Vector& from) {
    return floats(reinterpret_cast<const unsigned char*>(from.data()), from.size());
}

NormVectors Loader::norm(const Norm& from) {
    const float* weight = vector(from.weight);
    return {weight, vector(from.bias)};
}

}  // namespace rwkv::cuda
