#include "operations.h"
#include "q8_neon.h"

namespace rwkv::neon {
namespace {

constexpr size_t kColumns = 16;  // that are summed together

// Rounds kFine activations to numbers; returns their unit.
float round_fine(const float* x, signed char* numbers) {
    const Unit unit = fine_unit(largest_magnitude(x, kFine));
    for (size_t i = 0; i < kFine; i += kLanes) {
        vst1_s8(numbers + i, vmovn_s16(round_lanes(load_lanes(x + i), unit.inverse)));
    }
    return unit.unit;
}

int8x16_t load_bytes(const unsigned char* p, size_t count) {
    if (count >= kColumns) return vreinterpretq_s8_u8(vld1q_u8(p));
    unsigned char bytes[kColumns] = {};
    for (size_t i = 0; i < count; ++i) bytes[i] = p[i];
    return vreinterpretq_s8_u8(vld1q_u8(bytes));
}

// y[c] += unit * (sum over kFine rows of numbers[r] * rows[r][c]), for c in [first, last); rows from
// `count` on have the number 0.
void add_fine(const unsigned char* const* rows, size_t count, const signed char* numbers, float unit,
              size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; c += kColumns) {
        int32x4_t dots[4];
        for (int32x4_t& dot : dots) dot = vdupq_n_s32(0);
        for (size_t r = 0; r < count; r += 2) {
            // Two products are at most 2 * 128 * 127 < 2^15.
            const int8x16_t a = load_bytes(rows[r] + c, last - c);
            const int8x16_t b = load_bytes(rows[r + 1] + c, last - c);
            const int8x8_t for_a = vdup_n_s8(numbers[r]);
            const int8x8_t for_b = vdup_n_s8(numbers[r + 1]);
            const int16x8_t low =
                vmlal_s8(vmull_s8(vget_low_s8(a), for_a), vget_low_s8(b), for_b);
            const int16x8_t high =
                vmlal_s8(vmull_s8(vget_high_s8(a), for_a), vget_high_s8(b), for_b);
            dots[0] = vaddw_s16(dots[0], vget_low_s16(low));
            dots[1] = vaddw_high_s16(dots[1], low);
            dots[2] = vaddw_s16(dots[2], vget_low_s16(high));
            dots[3] = vaddw_high_s16(dots[3], high);
        }
        for (size_t half = 0; half < 2 && c + half * kLanes < last; ++half) {
            float* to = y + c + half * kLanes;
            const Mask mask = mask_of(last - c - half * kLanes);
            const Floats sums{vcvtq_f32_s32(dots[2 * half]), vcvtq_f32_s32(dots[2 * half + 1])};
            store_lanes(to, mask, fmadd(sums, spread(unit), load_lanes(to, mask)));
        }
    }
}

}  // namespace

void round_q8(const float* x, size_t n, unsigned char* rounded) {
    const RoundedQ8 parts(n);
    float* units = reinterpret_cast<float*>(rounded);
    auto* numbers = reinterpret_cast<signed char*>(rounded + parts.numbers);
    for (size_t i = 0; i < groups_of(n) * kGroup; i += kFine) {
        float values[kFine] = {};
        for (size_t j = 0; j < kFine && i + j < n; j += kLanes) {
            store_lanes(values + j, load_lanes(x + i + j, mask_of(n - i - j)));
        }
        units[i / kFine] = round_fine(values, numbers + i);
    }
}

void matmul_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
               float* y, size_t y_stride) {
    multiply_q8(w, first, last, x, tokens, y, y_stride);
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t, const float* x,
                 size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; ++c) y[c] = 0;
    for (size_t i = 0; i < count;) {
        const size_t taken = take_fine(rows + i, count - i);
        const unsigned char* data[kFine];
        for (size_t r = 0; r < kFine; ++r) data[r] = row_of(w, rows[i + (r < taken ? r : 0)]);
        for (size_t start = first; start < last; start += kGroup) {
            float values[kFine] = {};
            for (size_t r = 0; r < taken; ++r) {
                values[r] = x[rows[i + r]] * load_scale(scales_of(w, rows[i + r]), start / kGroup);
            }
            signed char numbers[kFine];
            const float unit = round_fine(values, numbers);
            const size_t end = last - start < kGroup ? last : start + kGroup;
            add_fine(data, taken, numbers, unit, start, end, y);
        }
        i += taken;
    }
}

}  // namespace rwkv::neon
