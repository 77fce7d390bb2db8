// The reference: every sum in order, in float64.

#include "operations.h"
#include "rounding.h"
#include "summing.h"

namespace rwkv::scalar {

void sum_rows(const Matrix& w, const uint32_t* rows, size_t count, size_t following, const float* x,
              size_t first, size_t last, float* y) {
    if (w.weights == Weights::q8_rows) {
        return sum_rows_q8(w, rows, count, following, x, first, last, y);
    }
    if (w.weights == Weights::q4_rows) {
        return sum_rows_q4(w, rows, count, following, x, first, last, y);
    }
    constexpr size_t kBlock = 64;
    for (size_t start = first; start < last; start += kBlock) {
        const size_t width = last - start < kBlock ? last - start : kBlock;
        double sums[kBlock] = {};
        for (size_t i = 0; i < count; ++i) {
            const unsigned char* weights = row_of(w, rows[i]);
            const float value = x[rows[i]];
            const double factor = w.weights == Weights::bf16 ? round_bf16(value) : value;
            for (size_t c = 0; c < width; ++c) sums[c] += factor * load(weights, start + c, w.weights);
        }
        for (size_t c = 0; c < width; ++c) y[start + c] = static_cast<float>(sums[c]);
    }
}

void sum_all_rows(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
                  size_t last, float* y, size_t y_stride) {
    sum_parts(w, x, x_stride, tokens, first, last, y, y_stride, sum_rows);
}

}  // namespace rwkv::scalar
