#include "weights.h"

#include <algorithm>

#include "../src/elements.h"

namespace rwkv::cuda {
namespace {

constexpr std::size_t kStaging = 32 << 20;
const char* const kDoing = "loading the model";

void check_type(const Matrix& matrix) {
    if (matrix.weights != Weights::f32) return;
    refuse("The GPU computes with bf16, q8 and q4 weights only. Use --weights bf16.");
}

// Elements of a matrix in whole tiles.
std::size_t padded_size(int rows, int columns) {
    return static_cast<std::size_t>(divide_up(rows, kTile)) * kTile * tiles_of(columns) * kTile;
}

}  // namespace

Loader::~Loader() { cudaFree(staging_); }

void Loader::fill() { check(cudaMalloc(&staging_, staging_bytes_), kDoing); }

void Loader::finish() { check(cudaStreamSynchronize(stream_), kDoing); }

// Calls take(first row, count) for pieces of the rows that are in staging.
template <typename Take>
void Loader::in_pieces(const unsigned char* from, std::size_t all, std::size_t row_bytes, Take take) {
    const std::size_t rows = std::min(std::max<std::size_t>(1, kStaging / row_bytes), all);
    if (staging_ == nullptr) {
        staging_bytes_ = std::max(staging_bytes_, rows * row_bytes);
        return;
    }
    for (std::size_t first = 0; first < all; first += rows) {
        const std::size_t count = std::min(rows, all - first);
        check(cudaMemcpyAsync(staging_, from + first * row_bytes, count * row_bytes, cudaMemcpyHostToDevice,
                              stream_), kDoing);
        check(take(static_cast<int>(first), static_cast<int>(count)), kDoing);
    }
}

DeviceMatrix Loader::matrix_q8(const Matrix& from, std::size_t skipped) {
    const int rows = static_cast<int>(from.rows), columns = static_cast<int>(from.columns);
    const int before = static_cast<int>(skipped);
    const std::size_t groups = groups_of(from.columns), bytes = tile_bytes_q8(from.columns);
    auto* weights = arena_.take<unsigned char>(padded_size(rows, columns));
    auto* scales = arena_.take<float>(from.rows * groups);
    in_pieces(from.data, static_cast<std::size_t>(divide_up(before + rows, kTile)), bytes,
              [&](int first, int count) {
                  return pack_q8(staging_, count, static_cast<int>(bytes), first * kTile - before, rows,
                                 columns, weights, scales, stream_);
              });
    return {reinterpret_cast<const uint4*>(weights), scales, nullptr, rows, tiles_of(columns),
            static_cast<int>(groups)};
}

DeviceMatrix Loader::matrix_q4(const Matrix& from) {
    const int rows = static_cast<int>(from.rows), tiles = tiles_of(static_cast<int>(from.columns));
    const int groups = tiles / kGroupTilesQ4, row_tiles = divide_up(rows, kTile);
    const std::size_t records = static_cast<std::size_t>(row_tiles) * groups;
    auto* weights = arena_.take<uint4>(records * kWarp);
    auto* pairs = arena_.take<std::uint32_t>(records * kTile);
    in_pieces(from.data, static_cast<std::size_t>(row_tiles), tile_bytes(from.columns),
              [&](int first, int count) {
                  return pack_q4(staging_, count, groups, first, weights, pairs, stream_);
              });
    return {weights, nullptr, pairs, rows, tiles, groups};
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
    if (from.weights == Weights::q4) return matrix_q4(from);
    if (from.weights == Weights::q8) return matrix_q8(from, 0);
    const int rows = static_cast<int>(from.rows), columns = static_cast<int>(from.columns);
    auto* weights = arena_.take<uint16_t>(padded_size(rows, columns));
    in_pieces(from.data, from.rows, from.columns * bytes_of(from.weights), [&](int first, int count) {
        return pack(staging_, count, columns, first, weights, stream_);
    });
    return {reinterpret_cast<const uint4*>(weights), nullptr, nullptr, rows, tiles_of(columns), 0};
}

DeviceMatrix Loader::part(const Matrix& from, std::size_t first, std::size_t last) {
    const Matrix own = part_of(from, first, last);
    return own.weights == Weights::q8 ? matrix_q8(own, first % kTileRows) : matrix(own);
}

Value Loader::value(const Matrix& from) {
    check_type(from);
    const int columns = static_cast<int>(from.columns);
    const int blocks = divide_up(columns, kValueColumns);
    const bool packed = from.weights == Weights::q4_rows;
    const std::size_t own = packed ? packed_bytes(from.columns) : from.columns * bytes_of(from.weights);
    const std::size_t pitch = packed ? own : static_cast<std::size_t>(blocks) * kValueColumns *
                                                 bytes_of(from.weights);
    auto* weights = arena_.take<unsigned char>(from.rows * pitch);
    Value result{weights, nullptr, packed, static_cast<int>(from.rows), columns, static_cast<int>(pitch), blocks};
    if (from.weights == Weights::q8_rows) {
        result.scales = floats(from.scales, from.rows * groups_of(from.columns));
    }
    in_pieces(from.data, from.rows, own, [&](int first, int count) -> int {
        return cudaMemcpy2DAsync(weights + static_cast<std::size_t>(first) * pitch, pitch, staging_, own, own,
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
