// The reference: exact sums inside a group, and those over groups and rows in order, in float64.

#include "operations.h"
#include "units_scalar.h"

namespace rwkv::scalar {

void matmul_q8(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    constexpr size_t kRows = 32;
    for (size_t start = first; start < last; start += kRows) {
        const size_t rows = last - start < kRows ? last - start : kRows;
        for (size_t t = 0; t < tokens; ++t) {
            const float* own = x + t * x_stride;
            const Unit unit = unit_of<kBitsQ8>(own, w.columns);
            double sums[kRows] = {};
            // Without a unit the result is NaN whatever the sums.
            for (size_t group = 0; group < groups_of(w.columns) && unit.inverse != 0; ++group) {
                const size_t begin = group * kGroup;
                const size_t size = w.columns - begin < kGroup ? w.columns - begin : kGroup;
                int rounded[kGroup];
                for (size_t i = 0; i < size; ++i) {
                    rounded[i] = round_to_int16(own[begin + i] * unit.inverse);
                }
                for (size_t r = 0; r < rows; ++r) {
                    const unsigned char* weights = row_of(w, start + r) + begin;
                    int dot = 0;
                    for (size_t i = 0; i < size; ++i) dot += load_q8(weights, i) * rounded[i];
                    sums[r] += static_cast<double>(load_scale(scales_of(w, start + r), group)) * dot;
                }
            }
            for (size_t r = 0; r < rows; ++r) {
                y[t * y_stride + start + r] = static_cast<float>(sums[r] * unit.unit);
            }
        }
    }
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t, const float* x, size_t first,
                 size_t last, float* y) {
    for (size_t start = first; start < last;) {
        const size_t group = start / kGroup;
        const size_t end = (group + 1) * kGroup < last ? (group + 1) * kGroup : last;
        double sums[kGroup] = {};
        for (size_t i = 0; i < count; ++i) {
            const unsigned char* weights = row_of(w, rows[i]);
            const double scale = load_scale(scales_of(w, rows[i]), group);
            const double factor = scale * x[rows[i]];
            for (size_t c = start; c < end; ++c) sums[c - start] += factor * load_q8(weights, c);
        }
        for (size_t c = start; c < end; ++c) y[c] = static_cast<float>(sums[c - start]);
        start = end;
    }
}

}  // namespace rwkv::scalar
