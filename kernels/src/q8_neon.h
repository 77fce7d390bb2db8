// Products with q8 weights, for NEON with and without integer dot products: the same numbers. Lanes are
// rows, so that every sum is the same for any number of tokens.
#pragma once

#include "rounding.h"
#include "units_neon.h"

namespace rwkv {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTokens = 4;

// Numbers whose products are summed as one: a fine group.
struct Fine {
    int8x16_t low, high;
};

inline Fine load_fine(const unsigned char* p) {
    return {vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_u8(vld1q_u8(p + kFine / 2))};
}

// The first `count` < kFine numbers, then zeros.
inline Fine load_fine(const unsigned char* p, size_t count) {
    unsigned char bytes[kFine] = {};
    for (size_t i = 0; i < count; ++i) bytes[i] = p[i];
    return load_fine(bytes);
}

// Lanes whose sum is that of the products.
inline int32x4_t multiply_fine(const Fine& w, const Fine& x) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.low, x.low), w.high, x.high);
#else
    // Two products are at most 2 * 128 * 127 < 2^15.
    const int16x8_t low = vmlal_high_s8(vmull_s8(vget_low_s8(w.low), vget_low_s8(x.low)), w.low, x.low);
    const int16x8_t high =
        vmlal_high_s8(vmull_s8(vget_low_s8(w.high), vget_low_s8(x.high)), w.high, x.high);
    return vpadalq_s16(vpaddlq_s16(low), high);
#endif
}

// `valid` rows from `row` on and kT tokens.
template <int kT>
void multiply_rows(const Matrix& w, size_t row, size_t valid, const unsigned char* x, float* y,
                   size_t y_stride) {
    const RoundedQ8 parts(w.columns);
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    // Rows past the end repeat the last one; their sums are not stored.
    const unsigned char* rows[kRows];
    const unsigned char* scales[kRows];
    for (size_t r = 0; r < kRows; ++r) {
        rows[r] = row_of(w, row + (r < valid ? r : valid - 1));
        scales[r] = scales_of(w, row + (r < valid ? r : valid - 1));
    }
    float32x4_t sums[kT];
    for (int t = 0; t < kT; ++t) sums[t] = vdupq_n_f32(0);
    for (size_t column = 0; column < w.columns;) {
        const size_t group = column / kGroup;
        const size_t end = w.columns - column < kGroup ? w.columns : column + kGroup;
        float32x4_t own[kT];
        for (int t = 0; t < kT; ++t) own[t] = vdupq_n_f32(0);
        const auto add = [&](const Fine (&weights)[kRows]) {
#pragma GCC unroll 4
            for (int t = 0; t < kT; ++t) {
                const unsigned char* token = x + t * stride;
                const Fine numbers = load_fine(token + parts.numbers + column);
                const int32x4_t dots = vpaddq_s32(vpaddq_s32(multiply_fine(weights[0], numbers),
                                                             multiply_fine(weights[1], numbers)),
                                                  vpaddq_s32(multiply_fine(weights[2], numbers),
                                                             multiply_fine(weights[3], numbers)));
                own[t] = vfmaq_n_f32(own[t], vcvtq_f32_s32(dots), load_scale(token, column / kFine));
            }
        };
        Fine weights[kRows];
        for (; column + kFine <= end; column += kFine) {
#pragma GCC unroll 4
            for (size_t r = 0; r < kRows; ++r) {
                // The next rows, which are behind the end of the matrix at its end: that is harmless.
                prefetch(rows[r] + column + kRows * w.columns);
                weights[r] = load_fine(rows[r] + column);
            }
            add(weights);
        }
        if (column < end) {
#pragma GCC unroll 4
            for (size_t r = 0; r < kRows; ++r) weights[r] = load_fine(rows[r] + column, end - column);
            add(weights);
            column = end;
        }
        float scale[kRows];
        for (size_t r = 0; r < kRows; ++r) scale[r] = load_scale(scales[r], group);
        for (int t = 0; t < kT; ++t) sums[t] = vfmaq_f32(sums[t], own[t], vld1q_f32(scale));
    }
    for (int t = 0; t < kT; ++t) store_four(y + t * y_stride + row, valid, sums[t]);
}

inline void multiply_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x,
                        size_t tokens, float* y, size_t y_stride) {
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    for (size_t row = first; row < last; row += kRows) {
        const size_t valid = last - row < kRows ? last - row : kRows;
        size_t t = 0;
        for (; t + kTokens <= tokens; t += kTokens) {
            multiply_rows<kTokens>(w, row, valid, x + t * stride, y + t * y_stride, y_stride);
        }
        for (; t < tokens; ++t) {
            multiply_rows<1>(w, row, valid, x + t * stride, y + t * y_stride, y_stride);
        }
    }
}

}  // namespace
}  // namespace rwkv
