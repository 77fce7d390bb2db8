// Reading single weights. Only the compiler's builtins: ISA files read this header too.
#pragma once

#include "rwkv/kernels.h"

namespace rwkv {
namespace {

inline size_t bytes_of(Weights weights) { return weights == Weights::f32 ? 4 : 2; }

inline const unsigned char* row_of(const Matrix& m, size_t row) {
    return m.data + row * m.columns * bytes_of(m.weights);
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

inline float load(const unsigned char* row, size_t column, Weights weights) {
    return weights == Weights::f32 ? load_f32(row + 4 * column) : load_bf16(row + 2 * column);
}

// y [columns] = one row of a matrix of any type.
inline void copy_row(const Matrix& m, size_t row, float* y) {
    for (size_t i = 0; i < m.columns; ++i) y[i] = load(row_of(m, row), i, m.weights);
}

}  // namespace
}  // namespace rwkv
