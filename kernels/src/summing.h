// sum_all_rows by way of sum_rows, for what has no faster one. Only the compiler's builtins.
#pragma once

#include "rwkv/kernels.h"

namespace rwkv {
namespace {

template <class SumRows>
void sum_parts(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
               size_t last, float* y, size_t y_stride, const SumRows& sum_rows) {
    const size_t width = last - first;
    for (size_t t = 0; t < tokens; ++t) {
        for (size_t c = 0; c < width; ++c) y[t * y_stride + first + c] = 0;
    }
    float sums[kGroup];
    for (size_t begin = 0; begin < w.rows; begin += kPart) {
        const size_t end = w.rows - begin < kPart ? w.rows : begin + kPart;
        for (size_t t = 0; t < tokens; ++t) {
            uint32_t active[kPart];
            size_t count = 0;
            for (size_t row = begin; row < end; ++row) {
                active[count] = static_cast<uint32_t>(row);
                count += x[t * x_stride + row] != 0;
            }
            // sum_rows writes sums[c] for columns from `first`, hence the shifted start.
            sum_rows(w, active, count, 0, x + t * x_stride, first, last, sums - first);
            for (size_t c = 0; c < width; ++c) y[t * y_stride + first + c] += sums[c];
        }
    }
}

}  // namespace
}  // namespace rwkv
