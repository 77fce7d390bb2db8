// Products with q4 weights, for NEON with and without integer dot products: the same numbers. A lane is
// a row, so that nothing is summed over lanes. Activations are two bytes, multiplied apart.
#pragma once

#include "units_neon.h"

namespace rwkv {
namespace {

constexpr size_t kChunk = 4096;  // columns whose activations are held rounded, in whole groups
constexpr size_t kBlock = 64;    // bytes of 8 columns of a tile

// Activations of one token, rounded to 256 * upper + lower, and their sums over groups; behind the
// last column of a chunk zeros fill the group.
struct Rounded {
    alignas(16) signed char upper[kChunk];
    alignas(16) signed char lower[kChunk];
    float sums[kChunk / kGroupQ4];
};

inline void round_units(const float* x, size_t n, float inverse, Rounded& rounded) {
    for (size_t group = 0; group * kGroupQ4 < n; ++group) {
        int sum = 0;
        for (size_t i = group * kGroupQ4; i < (group + 1) * kGroupQ4; i += kLanes) {
            const Floats own = i < n ? load_lanes(x + i, mask_of(n - i)) : spread(0.0f);
            const int16x8_t whole = round_lanes(own, inverse);
            const int8x8_t low = vmovn_s16(whole);
            vst1_s8(rounded.lower + i, low);
            vst1_s8(rounded.upper + i, vshrn_n_s16(vsubw_s8(whole, low), 8));
            sum += vaddlvq_s16(whole);
        }
        rounded.sums[group] = static_cast<float>(sum);
    }
}

// Sums of products of four rows' numbers up to 15 and bytes of activations, over up to a group.
struct Products {
#ifdef __ARM_FEATURE_DOTPROD
    int32x4_t sums = vdupq_n_s32(0);

    // 4 columns of the rows, and 16 activations, of which those from 4 * kFour on are theirs.
    template <int kFour>
    void add(int8x16_t numbers, int8x16_t activations) {
        sums = vdotq_laneq_s32(sums, numbers, activations, kFour);
    }
    int32x4_t total() const { return sums; }
#else
    // In 16 bits: 16 * 15 * 128 < 2^15.
    int16x8_t low = vdupq_n_s16(0);
    int16x8_t high = vdupq_n_s16(0);

    template <int kFour>
    void add(int8x16_t numbers, int8x16_t activations) {
        const int32x4_t own = vdupq_laneq_s32(vreinterpretq_s32_s8(activations), kFour);
        const int8x16_t four = vreinterpretq_s8_s32(own);
        low = vmlal_s8(low, vget_low_s8(numbers), vget_low_s8(four));
        high = vmlal_high_s8(high, numbers, four);
    }
    int32x4_t total() const { return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)); }
#endif
};

// Adds a block of a tile, of whose columns the activations begin with the 4 * kFour-th.
template <int kFour>
inline void add_block(const unsigned char* block, const signed char* upper, const signed char* lower,
                      Products (&high)[4], Products (&low)[4]) {
    const int8x16_t uppers = vld1q_s8(upper);
    const int8x16_t lowers = vld1q_s8(lower);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const uint8x16_t both = vld1q_u8(block + 16 * i);
        const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        high[i].template add<kFour>(first, uppers);
        low[i].template add<kFour>(first, lowers);
        high[i].template add<kFour + 1>(second, uppers);
        low[i].template add<kFour + 1>(second, lowers);
    }
}

// The sums of the rows of a tile over the groups of a chunk; `tile` begins with the chunk's.
inline void multiply_tile(const unsigned char* tile, size_t groups, const Rounded& x,
                          Floats (&sums)[2]) {
    for (Floats& sum : sums) sum = spread(0.0f);
    for (size_t group = 0; group < groups; ++group) {
        const unsigned char* record = tile + group * tile_bytes(kGroupQ4);
        Products high[4], low[4];
#pragma GCC unroll 4
        for (size_t j = 0; j < kGroupQ4; j += 16) {
            const unsigned char* block = record + 4 * kTileRows + j / 8 * kBlock;
            const signed char* upper = x.upper + group * kGroupQ4 + j;
            const signed char* lower = x.lower + group * kGroupQ4 + j;
            add_block<0>(block, upper, lower, high, low);
            add_block<2>(block + kBlock, upper, lower, high, low);
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const auto dots = [&](int i) {
                return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high[i].total(), 8), low[i].total()));
            };
            const Floats own{dots(2 * half), dots(2 * half + 1)};
            const Floats scale = load_weights<true>(record, half * kLanes);
            const Floats least = load_weights<true>(record + 2 * kTileRows, half * kLanes);
            sums[half] = fmadd(own, scale, sums[half]);
            sums[half] = fmadd(spread(x.sums[group]), least, sums[half]);
        }
    }
}

inline void multiply_token(const Matrix& w, size_t first, size_t last, const float* x, float* y) {
    Rounded rounded;
    const Unit unit = unit_for<kBitsQ4>(largest_magnitude(x, w.columns));
    for (size_t start = 0; start < w.columns; start += kChunk) {
        const size_t columns = w.columns - start < kChunk ? w.columns - start : kChunk;
        round_units(x + start, columns, unit.inverse, rounded);
        for (size_t row = first / kTileRows * kTileRows; row < last; row += kTileRows) {
            Floats sums[2];
            multiply_tile(row_of(w, row) + tile_bytes(start), (columns + kGroupQ4 - 1) / kGroupQ4,
                          rounded, sums);
            float own[kTileRows];
            for (size_t half = 0; half < 2; ++half) {
                store_lanes(own + half * kLanes, sums[half] * spread(unit.unit));
            }
            for (size_t r = row < first ? first - row : 0; r < kTileRows && row + r < last; ++r) {
                y[row + r] = start > 0 ? own[r] + y[row + r] : own[r];
            }
        }
    }
}

inline void multiply_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                        size_t tokens, float* y, size_t y_stride) {
    for (size_t t = 0; t < tokens; ++t) {
        multiply_token(w, first, last, x + t * x_stride, y + t * y_stride);
    }
}

}  // namespace
}  // namespace rwkv
