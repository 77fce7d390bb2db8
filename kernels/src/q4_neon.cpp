#include "operations.h"
#include "q4_neon.h"

namespace rwkv::neon {
namespace {

constexpr size_t kSpan = 2 * kGroupQ4;  // columns of a record
constexpr size_t kWords = 16;           // integers of a record, and columns in one of their parts
constexpr size_t kRows = 8;             // that are summed at once: memory is read in long runs

// One group of columns of some rows, from `column` on.
void add_group(const Matrix& w, const uint32_t* rows, size_t count, const float* x, size_t column,
               float* y) {
    const size_t at = packed_bytes(column / kSpan * kSpan);
    const size_t group = column % kSpan / kGroupQ4;
    float32x4_t sums[kWords];
#pragma GCC unroll 16
    for (size_t i = 0; i < kWords; ++i) sums[i] = vld1q_f32(y + 4 * i);
    for (size_t r = 0; r < count; ++r) {
        const unsigned char* record = row_of(w, rows[r]) + at;
        const float scale = load_bf16(record + 4 * group) * x[rows[r]];
        uint32x4_t words[4];
        for (size_t i = 0; i < 4; ++i) {
            words[i] = vreinterpretq_u32_u8(vld1q_u8(record + 8 + 16 * i));
            if (group == 1) words[i] = vshrq_n_u32(words[i], 16);
        }
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const uint32x4_t numbers =
                    vandq_u32(vshlq_u32(words[i], vdupq_n_s32(-4 * part)), vdupq_n_u32(15));
                float32x4_t& sum = sums[4 * part + i];
                sum = vfmaq_n_f32(sum, vcvtq_f32_u32(numbers), scale);
            }
        }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kWords; ++i) vst1q_f32(y + 4 * i, sums[i]);
}

}  // namespace

void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    multiply_q4(w, first, last, x, x_stride, tokens, y, y_stride);
}

// What the leasts add is the same for all columns of a group, so it is added once.
void sum_rows_q4(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
                 const float* x, size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; ++c) y[c] = 0;
    for (size_t i = 0; i < count; i += kRows) {
        const size_t taken = count - i < kRows ? count - i : kRows;
        for (size_t column = first; column < last; column += kGroupQ4) {
            for (size_t r = i; r < i + taken && column % kSpan == 0; ++r) {
                const size_t next = r + kRowsAhead < count + following ? r + kRowsAhead : r;
                ask_for(row_of(w, rows[next]) + packed_bytes(column), packed_bytes(kSpan));
            }
            if (last - column >= kGroupQ4) {
                add_group(w, rows + i, taken, x, column, y + column);
                continue;
            }
            float part[kGroupQ4] = {};
            for (size_t c = column; c < last; ++c) part[c - column] = y[c];
            add_group(w, rows + i, taken, x, column, part);
            for (size_t c = column; c < last; ++c) y[c] = part[c - column];
        }
    }
    for (size_t column = first; column < last; column += kGroupQ4) {
        const size_t place = packed_bytes(column / kSpan * kSpan) + column % kSpan / kGroupQ4 * 4 + 2;
        float leasts = 0;
        for (size_t i = 0; i < count; ++i) {
            leasts += load_bf16(row_of(w, rows[i]) + place) * x[rows[i]];
        }
        for (size_t c = column; c < column + kGroupQ4 && c < last; ++c) y[c] += leasts;
    }
}

}  // namespace rwkv::neon
