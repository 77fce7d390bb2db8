// Products with q4 weights, for AVX-512 with and without integer dot products: the same numbers.
// A lane is a row, so that nothing is summed over lanes. Activations are two bytes, multiplied apart.
#pragma once

#include "units_avx512.h"

namespace rwkv {
namespace {

constexpr size_t kTokens = 4;
constexpr size_t kChunk = 4096;  // columns whose activations are held rounded, in whole groups
constexpr size_t kBlock = 64;    // bytes of 8 columns of a tile

// Activations of some tokens, rounded to 256 * upper + lower, and their sums over groups; behind the
// last column of a chunk zeros fill the group.
struct Rounded {
    alignas(64) int8_t upper[kTokens][kChunk];
    alignas(64) int8_t lower[kTokens][kChunk];
    float sums[kTokens][kChunk / kGroupQ4];
    Unit unit[kTokens];
};

inline void round_units(const float* x, size_t n, float inverse, int8_t* upper, int8_t* lower,
                        float* sums) {
    const __m512 factor = _mm512_set1_ps(inverse);
    for (size_t group = 0; group * kGroupQ4 < n; ++group) {
        __m512i sum = _mm512_setzero_si512();
        for (size_t i = group * kGroupQ4; i < (group + 1) * kGroupQ4; i += kLanes) {
            const __mmask16 mask = i >= n ? 0 : n - i < kLanes ? mask_of(n - i) : 0xFFFF;
            const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
            const __m512i whole = _mm512_cvtps_epi32(scaled);
            const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(whole, 24), 24);
            const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(whole, low), 8);
            _mm_store_si128(reinterpret_cast<__m128i*>(lower + i), _mm512_cvtepi32_epi8(low));
            _mm_store_si128(reinterpret_cast<__m128i*>(upper + i), _mm512_cvtepi32_epi8(high));
            sum = _mm512_add_epi32(sum, whole);
        }
        sums[group] = static_cast<float>(_mm512_reduce_add_epi32(sum));
    }
}

// Adds the products of 4 columns: numbers from 0 to 15, and bytes of activations.
inline __m512i add_products(__m512i sum, __m512i numbers, const int8_t* activations) {
    int four;
    __builtin_memcpy(&four, activations, sizeof four);
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(sum, numbers, _mm512_set1_epi32(four));
#else
    const __m512i pairs = _mm512_maddubs_epi16(numbers, _mm512_set1_epi32(four));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

inline __m512 load_halves(const unsigned char* p) {
    return load_weights<true>(p, 0);
}

// The sums of the rows of a tile over the groups of a chunk; `tile` begins with the chunk's.
template <int kT>
inline void multiply_tile(const unsigned char* tile, size_t groups, const Rounded& x, __m512* sums) {
    const __m512i lower_half = _mm512_set1_epi8(15);
    for (int t = 0; t < kT; ++t) sums[t] = _mm512_setzero_ps();
    for (size_t group = 0; group < groups; ++group) {
        const unsigned char* record = tile + group * tile_bytes(kGroupQ4);
        for (size_t i = 0; i < tile_bytes(kGroupQ4); i += 64) prefetch(record + i + kAhead);
        const __m512 scale = load_halves(record);
        const __m512 least = load_halves(record + 2 * kTileRows);
        __m512i upper[kT][2];
        __m512i lower[kT][2];
        for (int t = 0; t < kT; ++t) {
            for (int half = 0; half < 2; ++half) {
                upper[t][half] = lower[t][half] = _mm512_setzero_si512();
            }
        }
#pragma GCC unroll 8
        for (size_t j = 0; j < kGroupQ4; j += 8) {
            const unsigned char* block = record + 4 * kTileRows + j / 8 * kBlock;
            const __m512i both = _mm512_loadu_si512(block);
            const __m512i numbers[2] = {
                _mm512_and_si512(both, lower_half),
                _mm512_and_si512(_mm512_srli_epi16(both, 4), lower_half)};
#pragma GCC unroll 4
            for (int t = 0; t < kT; ++t) {
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const size_t column = group * kGroupQ4 + j + 4 * half;
                    upper[t][half] = add_products(upper[t][half], numbers[half], x.upper[t] + column);
                    lower[t][half] = add_products(lower[t][half], numbers[half], x.lower[t] + column);
                }
            }
        }
        for (int t = 0; t < kT; ++t) {
            const __m512i high = _mm512_add_epi32(upper[t][0], upper[t][1]);
            const __m512i low = _mm512_add_epi32(lower[t][0], lower[t][1]);
            const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[t]);
            sums[t] = _mm512_fmadd_ps(_mm512_set1_ps(x.sums[t][group]), least, sums[t]);
        }
    }
}

template <int kT>
void multiply_rows(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
    Rounded rounded;
    for (int t = 0; t < kT; ++t) rounded.unit[t] = unit_of<kBitsQ4>(x + t * x_stride, w.columns);
    for (size_t start = 0; start < w.columns; start += kChunk) {
        const size_t columns = w.columns - start < kChunk ? w.columns - start : kChunk;
        for (int t = 0; t < kT; ++t) {
            round_units(x + t * x_stride + start, columns, rounded.unit[t].inverse, rounded.upper[t],
                        rounded.lower[t], rounded.sums[t]);
        }
        for (size_t row = first / kTileRows * kTileRows; row < last; row += kTileRows) {
            __m512 sums[kT];
            multiply_tile<kT>(row_of(w, row) + tile_bytes(start), (columns + kGroupQ4 - 1) / kGroupQ4,
                              rounded, sums);
            __mmask16 wanted = 0xFFFF;
            if (row < first) wanted &= ~mask_of(first - row);
            if (last - row < kTileRows) wanted &= mask_of(last - row);
            for (int t = 0; t < kT; ++t) {
                __m512 sum = _mm512_mul_ps(sums[t], _mm512_set1_ps(rounded.unit[t].unit));
                float* own = y + t * y_stride + row;
                if (start > 0) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(wanted, own));
                _mm512_mask_storeu_ps(own, wanted, sum);
            }
        }
    }
}

inline void multiply_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                        size_t tokens, float* y, size_t y_stride) {
    size_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) {
        multiply_rows<kTokens>(w, first, last, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
    x += t * x_stride;
    y += t * y_stride;
    switch (tokens - t) {
        case 1: return multiply_rows<1>(w, first, last, x, x_stride, y, y_stride);
        case 2: return multiply_rows<2>(w, first, last, x, x_stride, y, y_stride);
        case 3: return multiply_rows<3>(w, first, last, x, x_stride, y, y_stride);
        default: return;
    }
}

}  // namespace
}  // namespace rwkv
