// What the drivers share: failing loudly, and random numbers that are the same everywhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../src/elements.h"
#include "rwkv/kernels.h"

#define CHECK(condition, ...)                                                       \
    do {                                                                            \
        if (!(condition)) {                                                         \
            std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);    \
            std::fprintf(stderr, __VA_ARGS__);                                      \
            std::fprintf(stderr, "\n");                                             \
            std::exit(1);                                                           \
        }                                                                           \
    } while (false)

namespace rwkv::test {

class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t n) { return bits() % n; }
    // Of a matrix that is multiplied, or of one of which rows are read.
    Weights weights(bool by_row) {
        const Weights whole[] = {Weights::f32, Weights::bf16, Weights::q8, Weights::q4};
        const Weights rows[] = {Weights::f32, Weights::bf16, Weights::q8_rows, Weights::q4_rows};
        return (by_row ? rows : whole)[below(4)];
    }
    std::size_t between(std::size_t low, std::size_t high) { return low + below(high - low + 1); }
    double uniform(double low, double high) {
        return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
    }

    // n floats: ordinary ones, or of wildly different sizes with zeros and subnormals among them.
    std::vector<float> floats(std::size_t n, bool wild = false) {
        std::vector<float> values(n);
        for (float& value : values) {
            value = static_cast<float>(uniform(-1, 1));
            if (!wild) continue;
            switch (below(5)) {
                case 0: value = 0; break;
                case 1: value = -0.0f; break;
                case 2: value *= 1e-40f; break;
                case 3: value *= 1e12f; break;
                default: break;
            }
        }
        return values;
    }

private:
    std::uint64_t state_;
};

// A matrix in a heap block of its own whose last byte is the matrix's last byte, so that the
// address sanitizer sees every read past the end; `offset` bytes off the block's alignment.
class OwnedMatrix {
public:
    OwnedMatrix(const std::vector<float>& values, std::size_t rows, std::size_t columns,
                Weights weights, std::size_t offset)
        : bytes_(offset + size_of(rows, columns, weights)),
          scales_(weights == Weights::q8_rows ? offset + rows * groups_of(columns) * sizeof(float) : 0),
          matrix_{bytes_.data() + offset, rows, columns, weights} {
        if (weights == Weights::q4 || weights == Weights::q4_rows) {
            for (std::size_t row = 0; row < rows; ++row) {
                for (std::size_t c = 0; c < columns; c += kGroupQ4) fill_group_q4(values, row, c);
            }
            return;
        }
        if (weights == Weights::q8 || weights == Weights::q8_rows) {
            if (weights == Weights::q8_rows) matrix_.scales = scales_.data() + offset;
            for (std::size_t row = 0; row < rows; ++row) {
                for (std::size_t group = 0; group < groups_of(columns); ++group) {
                    fill_group(values, row, group);
                }
            }
            return;
        }
        const std::size_t size = bytes_of(weights);
        for (std::size_t i = 0; i < rows * columns; ++i) {
            // The upper half of a little-endian float is its bfloat16, rounded towards zero.
            const auto* source = reinterpret_cast<const unsigned char*>(&values[i]) + 4 - size;
            std::memcpy(bytes_.data() + offset + i * size, source, size);
        }
    }
    const Matrix& get() const { return matrix_; }
    double at(std::size_t row, std::size_t column) const {
        switch (matrix_.weights) {
            case Weights::q8: {
                const WeightQ8 weight = load_q8(matrix_, row, column);
                return static_cast<double>(weight.scale) * weight.number;
            }
            case Weights::q8_rows:
                return static_cast<double>(load_scale(scales_of(matrix_, row), column / kGroup)) *
                       load_q8(row_of(matrix_, row), column);
            case Weights::q4:
            case Weights::q4_rows: {
                const WeightQ4 weight = load_q4(matrix_, row, column);
                return static_cast<double>(weight.scale) * weight.number + weight.least;
            }
            default: return load(row_of(matrix_, row), column, matrix_.weights);
        }
    }
    // Of the terms that a weight is the sum of.
    double magnitude(std::size_t row, std::size_t column) const {
        if (matrix_.weights != Weights::q4 && matrix_.weights != Weights::q4_rows) {
            return std::fabs(at(row, column));
        }
        const WeightQ4 weight = load_q4(matrix_, row, column);
        return static_cast<double>(std::fabs(weight.scale)) * weight.number + std::fabs(weight.least);
    }
    // The shape of the array that holds it.
    std::vector<std::size_t> shape() const {
        const std::size_t rows = matrix_.rows;
        const std::size_t columns = matrix_.columns;
        switch (matrix_.weights) {
            case Weights::q8:
                return {(rows + kTileRows - 1) / kTileRows, row_bytes_q8(columns), kTileRows};
            case Weights::q4:
                return {(rows + kTileRows - 1) / kTileRows, (columns + kGroupQ4 - 1) / kGroupQ4,
                        tile_bytes(kGroupQ4)};
            case Weights::q4_rows: return {rows, packed_bytes(columns)};
            default: return {rows, columns};
        }
    }
    // Null for weights that have none.
    const unsigned char* scales() const { return matrix_.scales; }

private:
    static std::size_t size_of(std::size_t rows, std::size_t columns, Weights weights) {
        switch (weights) {
            case Weights::q8: return (rows + kTileRows - 1) / kTileRows * tile_bytes_q8(columns);
            case Weights::q4: return (rows + kTileRows - 1) / kTileRows * tile_bytes(columns);
            case Weights::q4_rows: return rows * packed_bytes(columns);
            default: return rows * columns * bytes_of(weights);
        }
    }

    // The group that begins with `first`.
    void fill_group_q4(const std::vector<float>& values, std::size_t row, std::size_t first) {
        const float* own = &values[row * matrix_.columns];
        const std::size_t last = std::min(first + kGroupQ4, matrix_.columns);
        const auto [low, high] = std::minmax_element(own + first, own + last);
        auto* data = const_cast<unsigned char*>(matrix_.data);
        const auto store = [&](std::size_t place, float value) {
            std::memcpy(data + place, reinterpret_cast<const unsigned char*>(&value) + 2, 2);
        };
        const PlaceQ4 group = place_q4(matrix_, row, first);
        store(group.scale, (*high - *low) / 15);
        store(group.least, *low);
        for (std::size_t i = first; i < last; ++i) {
            const WeightQ4 weight = load_q4(matrix_, row, i);
            const float ratio = weight.scale > 0 ? (own[i] - weight.least) / weight.scale : 0;
            const int number = static_cast<int>(std::nearbyint(std::clamp(ratio, 0.0f, 15.0f)));
            const PlaceQ4 place = place_q4(matrix_, row, i);
            data[place.number] |= static_cast<unsigned char>(place.upper ? number << 4 : number);
        }
    }

    void fill_group(const std::vector<float>& values, std::size_t row, std::size_t group) {
        const std::size_t columns = matrix_.columns;
        const std::size_t first = group * kGroup;
        const std::size_t last = std::min(first + kGroup, columns);
        const float* own = &values[row * columns];
        const bool tiled = matrix_.weights == Weights::q8;
        auto* data = const_cast<unsigned char*>(matrix_.data);
        float scale = 0;
        for (std::size_t i = first; i < last; ++i) scale = std::max(scale, std::fabs(own[i]) / 127);
        auto* scales = tiled ? data + place_q8(matrix_, row, first).scale
                             : const_cast<unsigned char*>(scales_of(matrix_, row)) + group * sizeof(float);
        std::memcpy(scales, &scale, sizeof scale);
        for (std::size_t i = first; i < last; ++i) {
            const float ratio = scale > 0 ? std::nearbyint(own[i] / scale) : 0;
            const int number = static_cast<int>(std::clamp(ratio, -128.0f, 127.0f));
            const std::size_t place = tiled ? place_q8(matrix_, row, i).number : row * columns + i;
            data[place] = static_cast<unsigned char>(tiled ? number + 128 : number);
        }
    }

    std::vector<unsigned char> bytes_;
    std::vector<unsigned char> scales_;
    Matrix matrix_;
};

void test_operations(const Kernels& kernels);
void test_cores();
void test_pool();
void test_vocabulary();
void test_sampler();
void test_model();

}  // namespace rwkv::test
