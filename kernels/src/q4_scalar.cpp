// The reference: exact sums inside a group, and those over groups and rows in order, in float64.

#include "operations.h"
#include "units_scalar.h"

namespace rwkv::scalar {
namespace {

double weight_of(const Matrix& w, size_t row, size_t column) {
    const WeightQ4 weight = load_q4(w, row, column);
    return static_cast<double>(weight.scale) * weight.number + weight.least;
}

}  // namespace

void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    for (size_t t = 0; t < tokens; ++t) {
        const float* own = x + t * x_stride;
        const Unit unit = unit_of<kBitsQ4>(own, w.columns);
        for (size_t row = first; row < last; ++row) {
            double sum = 0;
            // Without a unit the result is NaN whatever the sum.
            for (size_t i = 0; i < w.columns && unit.inverse != 0; ++i) {
                sum += weight_of(w, row, i) * round_to_int16(own[i] * unit.inverse);
            }
            y[t * y_stride + row] = static_cast<float>(sum * unit.unit);
        }
    }
}

void sum_rows_q4(const Matrix& w, const uint32_t* rows, size_t count, size_t, const float* x,
                 size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; ++c) {
        double sum = 0;
        for (size_t i = 0; i < count; ++i) sum += weight_of(w, rows[i], c) * x[rows[i]];
        y[c] = static_cast<float>(sum);
    }
}

}  // namespace rwkv::scalar
