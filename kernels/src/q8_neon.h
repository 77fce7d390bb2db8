// Products with q8 weights, for NEON with and without integer dot products: the same numbers. Lanes are
// rows, so that every sum is the same for any number of tokens.
#pragma once

#include "rounding.h"
#include "units_neon.h"

namespace rwkv {
namespace {

constexpr size_t kTokens = 4;
constexpr size_t kFour = 4;                            // rows of a vector, and columns of a block
constexpr size_t kBlockQ8 = kFour * kTileRows;         // bytes
constexpr size_t kScales = kTileRows * sizeof(float);  // bytes
constexpr size_t kSteps = kFine / kFour;
constexpr size_t kAhead = 4096;  // how far ahead a single stream of weights is asked for, in bytes

inline int8x8_t load_numbers(const unsigned char* p) {
    int four;
    __builtin_memcpy(&four, p, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}

// The sums of products of four rows with a fine group of activations.
inline int32x4_t multiply_fine(const int8x16_t (&w)[kSteps], const unsigned char* numbers) {
#ifdef __ARM_FEATURE_DOTPROD
    const int8x16_t low = vreinterpretq_s8_u8(vld1q_u8(numbers));
    const int8x16_t high = vreinterpretq_s8_u8(vld1q_u8(numbers + kFine / 2));
    int32x4_t a = vdotq_laneq_s32(vdupq_n_s32(0), w[0], low, 0);
    int32x4_t b = vdotq_laneq_s32(vdupq_n_s32(0), w[4], high, 0);
    a = vdotq_laneq_s32(a, w[1], low, 1);
    b = vdotq_laneq_s32(b, w[5], high, 1);
    a = vdotq_laneq_s32(a, w[2], low, 2);
    b = vdotq_laneq_s32(b, w[6], high, 2);
    a = vdotq_laneq_s32(a, w[3], low, 3);
    b = vdotq_laneq_s32(b, w[7], high, 3);
    return vaddq_s32(a, b);
#else
    int32x4_t low = vdupq_n_s32(0);  // pairs of columns of two rows
    int32x4_t high = vdupq_n_s32(0);
#pragma GCC unroll 4
    for (size_t i = 0; i < kSteps; i += 2) {
        // Two products are at most 2 * 128 * 127 < 2^15.
        const int8x8_t a = load_numbers(numbers + kFour * i);
        const int8x8_t b = load_numbers(numbers + kFour * (i + 1));
        low = vpadalq_s16(
            low, vmlal_s8(vmull_s8(vget_low_s8(w[i]), a), vget_low_s8(w[i + 1]), b));
        high = vpadalq_s16(
            high, vmlal_s8(vmull_s8(vget_high_s8(w[i]), a), vget_high_s8(w[i + 1]), b));
    }
    return vpaddq_s32(low, high);
#endif
}

// results[t] [4 kV] = the products of 4 kV rows of a tile, which begin at `tile`, with kT tokens.
template <int kV, int kT>
void multiply_rows(const unsigned char* tile, size_t columns, const unsigned char* x, float* results) {
    const RoundedQ8 parts(columns);
    const size_t stride = rounded_bytes(Weights::q8, columns);
    float32x4_t sums[kV][kT];
#pragma GCC unroll 4
    for (int i = 0; i < kV * kT; ++i) sums[i / kT][i % kT] = vdupq_n_f32(0);
    for (size_t column = 0; column < columns; column += kGroup) {
        const unsigned char* record = tile + tile_bytes_q8(column);
        const size_t own = columns - column < kGroup ? columns - column : kGroup;
        float32x4_t part[kV][kT];
#pragma GCC unroll 4
        for (int i = 0; i < kV * kT; ++i) part[i / kT][i % kT] = vdupq_n_f32(0);
        for (size_t fine = 0; fine < own; fine += kFine) {
            const unsigned char* blocks = record + kScales + fine * kTileRows;
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) {
                int8x16_t weights[kSteps];
#pragma GCC unroll 8
                for (size_t step = 0; step < kSteps; ++step) {
                    const unsigned char* block = blocks + step * kBlockQ8;
                    if (v == 0 && kV > 1) prefetch(block + kAhead);
                    const uint8x16_t biased = vld1q_u8(block + v * kFour * kFour);
                    weights[step] = vreinterpretq_s8_u8(veorq_u8(biased, vdupq_n_u8(128)));
                }
#pragma GCC unroll 4
                for (int t = 0; t < kT; ++t) {
                    const unsigned char* token = x + t * stride;
                    const int32x4_t dots =
                        multiply_fine(weights, token + parts.numbers + column + fine);
                    part[v][t] = vfmaq_n_f32(part[v][t], vcvtq_f32_s32(dots),
                                             load_scale(token, (column + fine) / kFine));
                }
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < kV * kT; ++i) {
            const auto* scales = record + i / kT * kFour * sizeof(float);
            const float32x4_t scale = vreinterpretq_f32_u8(vld1q_u8(scales));
            sums[i / kT][i % kT] = vfmaq_f32(sums[i / kT][i % kT], part[i / kT][i % kT], scale);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kV * kT; ++i) {
        vst1q_f32(results + i % kT * kTileRows + i / kT * kFour, sums[i / kT][i % kT]);
    }
}

inline void multiply_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x,
                        size_t tokens, float* y, size_t y_stride) {
    constexpr int kVectors = kTileRows / kFour;
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    float results[kTokens * kTileRows];
    for (size_t row = first / kTileRows * kTileRows; row < last; row += kTileRows) {
        const unsigned char* tile = row_of(w, row);
        const size_t from = row < first ? first - row : 0;
        const size_t to = last - row < kTileRows ? last - row : kTileRows;
        for (size_t t = 0; t < tokens;) {
            const unsigned char* own = x + t * stride;
            size_t count = kTokens;
            if (tokens - t >= kTokens) {
                for (int v = 0; v < kVectors; ++v) {
                    multiply_rows<1, kTokens>(tile + v * kFour * kFour, w.columns, own,
                                              results + v * kFour);
                }
            } else {
                count = 1;
                multiply_rows<kVectors, 1>(tile, w.columns, own, results);
            }
            for (size_t i = 0; i < count; ++i, ++t) {
                float* target = y + t * y_stride + row;
                for (size_t lane = from; lane < to; ++lane) {
                    target[lane] = results[i * kTileRows + lane];
                }
            }
        }
    }
}

}  // namespace
}  // namespace rwkv
