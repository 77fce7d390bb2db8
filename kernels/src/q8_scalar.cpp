// The reference: exact sums inside a fine group, and those over them in order, in float64.

#include "operations.h"
#include "rounding.h"
#include "units_scalar.h"

namespace rwkv::scalar {
namespace {

// n <= kFine activations as integers, and what these are to be multiplied with.
float round_fine(const float* x, size_t n, int* numbers) {
    const Unit unit = fine_unit(largest_of(x, n));
    // To the nearest integer, ties to even, by pushing the fraction out of the float.
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
    for (size_t i = 0; i < n; ++i) {
        numbers[i] =
            unit.inverse == 0 ? 0 : static_cast<int>((x[i] * unit.inverse + kShift) - kShift);
    }
    return unit.unit;
}

}  // namespace

void round_q8(const float* x, size_t n, unsigned char* rounded) {
    const RoundedQ8 parts(n);
    float* units = reinterpret_cast<float*>(rounded);
    signed char* numbers = reinterpret_cast<signed char*>(rounded + parts.numbers);
    for (size_t begin = 0; begin < n; begin += kFine) {
        int fine[kFine];
        const size_t size = n - begin < kFine ? n - begin : kFine;
        units[begin / kFine] = round_fine(x + begin, size, fine);
        for (size_t i = 0; i < size; ++i) numbers[begin + i] = static_cast<signed char>(fine[i]);
    }
}

void matmul_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
               float* y, size_t y_stride) {
    const RoundedQ8 parts(w.columns);
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    for (size_t row = first; row < last; ++row) {
        for (size_t t = 0; t < tokens; ++t) {
            const float* units = reinterpret_cast<const float*>(x + t * stride);
            const auto* numbers =
                reinterpret_cast<const signed char*>(x + t * stride + parts.numbers);
            double sum = 0;
            for (size_t begin = 0; begin < w.columns; begin += kFine) {
                const size_t end = w.columns - begin < kFine ? w.columns : begin + kFine;
                int dot = 0;
                for (size_t i = begin; i < end; ++i) dot += load_q8(w, row, i).number * numbers[i];
                const double scale = load_q8(w, row, begin).scale;
                sum += scale * units[begin / kFine] * dot;
            }
            y[t * y_stride + row] = static_cast<float>(sum);
        }
    }
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t,
              const float* x, size_t first, size_t last, float* y) {
    for (size_t start = first; start < last;) {
        const size_t group = start / kGroup;
        const size_t end = (group + 1) * kGroup < last ? (group + 1) * kGroup : last;
        double sums[kGroup] = {};
        for (size_t i = 0; i < count;) {
            const size_t taken = take_fine(rows + i, count - i);
            float values[kFine];
            for (size_t r = 0; r < taken; ++r) {
                values[r] = x[rows[i + r]] * load_scale(scales_of(w, rows[i + r]), group);
            }
            int numbers[kFine];
            const double unit = round_fine(values, taken, numbers);
            for (size_t c = start; c < end; ++c) {
                int dot = 0;
                for (size_t r = 0; r < taken; ++r) {
                    dot += load_q8(row_of(w, rows[i + r]), c) * numbers[r];
                }
                sums[c - start] += unit * dot;
            }
            i += taken;
        }
        for (size_t c = start; c < end; ++c) y[c] = static_cast<float>(sums[c - start]);
        start = end;
    }
}

}  // namespace rwkv::scalar
