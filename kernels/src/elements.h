// Reading single weights and rows. Only the compiler's builtins: ISA files read this header too.
#pragma once

#include "rwkv/kernels.h"

namespace rwkv {
namespace {

// Into the second-level cache. Asking needs no permission to read, so the memory may end earlier.
inline void ask_for(const void* memory, size_t bytes) {
    constexpr size_t kLine = 64;
    const char* start = static_cast<const char*>(memory);
    for (size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(start + i, 0, 2);
}

// sum_rows asks for rows this many rows before it needs them.
constexpr size_t kRowsAhead = 16;

inline size_t bytes_of(Weights weights) {
    switch (weights) {
        case Weights::f32: return 4;
        case Weights::bf16: return 2;
        case Weights::q8_rows: return 1;
        case Weights::q8:
        case Weights::q4:
        case Weights::q4_rows: break;  // not so many whole ones
    }
    return 0;
}

inline size_t groups_of(size_t columns) { return (columns + kGroup - 1) / kGroup; }

// The bytes that a row takes in a tile of q8, and those of the tile; or of so many whole groups of it.
inline size_t row_bytes_q8(size_t columns) {
    return groups_of(columns) * sizeof(float) + (columns + kFine - 1) / kFine * kFine;
}

inline size_t tile_bytes_q8(size_t columns) { return row_bytes_q8(columns) * kTileRows; }

// The bytes of a tile of rows in q4, and of a row in q4_rows.
inline size_t tile_bytes(size_t columns) {
    return (columns + kGroupQ4 - 1) / kGroupQ4 * (kTileRows * (4 + kGroupQ4 / 2));
}

inline size_t packed_bytes(size_t columns) {
    return (columns + 2 * kGroupQ4 - 1) / (2 * kGroupQ4) * (8 + kGroupQ4);
}

// Where a row begins; of q8 and q4 the tile that it is in.
inline const unsigned char* row_of(const Matrix& m, size_t row) {
    switch (m.weights) {
        case Weights::q8: return m.data + row / kTileRows * tile_bytes_q8(m.columns);
        case Weights::q4: return m.data + row / kTileRows * tile_bytes(m.columns);
        case Weights::q4_rows: return m.data + row * packed_bytes(m.columns);
        default: return m.data + row * m.columns * bytes_of(m.weights);
    }
}

// The scales of a row of a q8_rows matrix.
inline const unsigned char* scales_of(const Matrix& m, size_t row) {
    return m.scales + row * groups_of(m.columns) * sizeof(float);
}

// The rows [first, last) of a matrix; of q8 and q4 from the beginning of a tile.
inline Matrix part_of(const Matrix& m, size_t first, size_t last) {
    const bool scaled = m.weights == Weights::q8_rows;
    return {row_of(m, first), last - first, m.columns, m.weights,
            scaled ? scales_of(m, first) : nullptr};
}

inline float load_f32(const unsigned char* p) {
    float value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

// bfloat16 is the upper half of a float32, so this is exact.
inline float load_bf16(const unsigned char* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Of a row that has no scales.
inline float load(const unsigned char* row, size_t column, Weights weights) {
    return weights == Weights::f32 ? load_f32(row + 4 * column) : load_bf16(row + 2 * column);
}

// Of a row in q8_rows.
inline int load_q8(const unsigned char* row, size_t column) {
    return static_cast<signed char>(row[column]);
}

// Where a matrix in q8 keeps what a weight is made of: offsets in bytes.
struct PlaceQ8 {
    size_t scale;
    size_t number;
};

inline PlaceQ8 place_q8(const Matrix& m, size_t row, size_t column) {
    const size_t record = static_cast<size_t>(row_of(m, row) - m.data) +
                          tile_bytes_q8(column / kGroup * kGroup);
    const size_t own = row % kTileRows * 4;
    return {record + own, record + kTileRows * 4 + column % kGroup / 4 * (kTileRows * 4) + own + column % 4};
}

// A weight in q8 is scale * number.
struct WeightQ8 {
    float scale;
    int number;
};

inline WeightQ8 load_q8(const Matrix& m, size_t row, size_t column) {
    const PlaceQ8 place = place_q8(m, row, column);
    return {load_f32(m.data + place.scale), m.data[place.number] - 128};
}

// Where a matrix in q4 or q4_rows keeps what a weight is made of: offsets in bytes.
struct PlaceQ4 {
    size_t scale;
    size_t least;
    size_t number;  // of the byte
    bool upper;     // the half of the byte
};

inline PlaceQ4 place_q4(const Matrix& m, size_t row, size_t column) {
    size_t record = static_cast<size_t>(row_of(m, row) - m.data);
    if (m.weights == Weights::q4) {
        record += column / kGroupQ4 * tile_bytes(kGroupQ4);
        const size_t within = column % kGroupQ4;
        const size_t own = row % kTileRows;
        return {record + 2 * own, record + 2 * (kTileRows + own),
                record + 4 * kTileRows + (within / 8 * kTileRows + own) * 4 + within % 4,
                within % 8 >= 4};
    }
    record += column / (2 * kGroupQ4) * packed_bytes(2 * kGroupQ4);
    const size_t within = column % (2 * kGroupQ4);
    const size_t scale = record + within / kGroupQ4 * 4;
    return {scale, scale + 2, record + 8 + within % 16 * 4 + within / 32, within / 16 % 2 == 1};
}

// A weight in q4 or q4_rows is scale * number + least.
struct WeightQ4 {
    float scale;
    float least;
    int number;
};

inline WeightQ4 load_q4(const Matrix& m, size_t row, size_t column) {
    const PlaceQ4 place = place_q4(m, row, column);
    const int pair = m.data[place.number];
    return {load_bf16(m.data + place.scale), load_bf16(m.data + place.least),
            place.upper ? pair >> 4 : pair & 15};
}

// The scale of a group; `scales` are those of a row.
inline float load_scale(const unsigned char* scales, size_t group) {
    return load_f32(scales + group * sizeof(float));
}

// y [columns] = one row of a matrix whose rows lie by themselves.
inline void copy_row(const Matrix& m, size_t row, float* y) {
    const unsigned char* weights = row_of(m, row);
    if (m.weights == Weights::q8_rows) {
        const unsigned char* scales = scales_of(m, row);
        for (size_t i = 0; i < m.columns; ++i) {
            y[i] = load_scale(scales, i / kGroup) * static_cast<float>(load_q8(weights, i));
        }
    } else if (m.weights == Weights::q4_rows) {
        for (size_t i = 0; i < m.columns; ++i) {
            const WeightQ4 weight = load_q4(m, row, i);
            y[i] = weight.scale * static_cast<float>(weight.number) + weight.least;
        }
    } else {
        for (size_t i = 0; i < m.columns; ++i) y[i] = load(weights, i, m.weights);
    }
}

}  // namespace
}  // namespace rwkv
