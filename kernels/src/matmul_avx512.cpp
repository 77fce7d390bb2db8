// A tile is 4 rows x up to 6 tokens: 24 accumulators, 6 activations and 1 weight fill 31 registers.
// Each (row, token) has one accumulator of 16 lanes whatever the tile.

#include "lanes_avx512.h"
#include "operations.h"
#include "rounding.h"

namespace rwkv::avx512 {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTokens = 6;

// One row and one token: rows one after the other are one stream, which the hardware follows.
// kTail: the columns are no multiple of the lanes. Known to the compiler, because otherwise it keeps
// the accumulators in memory for the sake of the tail.
template <bool kBf16, bool kTail>
__m512 multiply_row(const unsigned char* row, const float* x, size_t columns) {
    constexpr size_t kElement = kBf16 ? 2 : 4;
    __m512 sum = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
        prefetch(row + j * kElement + kAhead);
        sum = _mm512_fmadd_ps(load_weights<kBf16>(row, j), _mm512_loadu_ps(x + j), sum);
    }
    if constexpr (kTail) {
        const __mmask16 mask = mask_of(columns - j);
        const __m512 xs = _mm512_maskz_loadu_ps(mask, x + j);
        sum = _mm512_fmadd_ps(load_weights<kBf16>(row, j, columns - j), xs, sum);
    }
    return sum;
}

// Rows together and kT tokens.
template <bool kBf16, int kT, bool kTail>
void multiply_together(const unsigned char* const* rows, const float* x, size_t x_stride,
                       size_t columns, __m512 (&sums)[kRows][kT]) {
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
        for (int t = 0; t < kT; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    const size_t whole = columns / kLanes * kLanes;
    // Rows are too short for the hardware to learn, so each tile asks for the next one. Behind the
    // end of the matrix this is harmless.
    constexpr size_t kElement = kBf16 ? 2 : 4;
    const size_t ahead = kRows * columns * kElement;
    for (size_t j = 0; j < whole; j += kLanes) {
        __m512 xs[kT];
        for (int t = 0; t < kT; ++t) xs[t] = _mm512_loadu_ps(x + t * x_stride + j);
        for (size_t r = 0; r < kRows; ++r) {
            prefetch(rows[r] + j * kElement + ahead);
            const __m512 weights = load_weights<kBf16>(rows[r], j);
            for (int t = 0; t < kT; ++t) sums[r][t] = _mm512_fmadd_ps(weights, xs[t], sums[r][t]);
        }
    }
    if constexpr (kTail) {
        const __mmask16 mask = mask_of(columns - whole);
        for (int t = 0; t < kT; ++t) {
            const __m512 xs = _mm512_maskz_loadu_ps(mask, x + t * x_stride + whole);
            for (size_t r = 0; r < kRows; ++r) {
                const __m512 weights = load_weights<kBf16>(rows[r], whole, columns - whole);
                sums[r][t] = _mm512_fmadd_ps(weights, xs, sums[r][t]);
            }
        }
    }
}

template <bool kBf16, int kT, bool kTail>
void multiply_tile(const Matrix& w, size_t row, size_t valid, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
    // Rows past the end repeat the last one; their sums are not stored.
    const unsigned char* rows[kRows];
    for (size_t r = 0; r < kRows; ++r) rows[r] = row_of(w, row + (r < valid ? r : valid - 1));
    __m512 sums[kRows][kT];
    if constexpr (kT == 1) {
        for (size_t r = 0; r < kRows; ++r) {
            sums[r][0] = multiply_row<kBf16, kTail>(rows[r], x, w.columns);
        }
    } else {
        multiply_together<kBf16, kT, kTail>(rows, x, x_stride, w.columns, sums);
    }
    const __mmask8 stored = static_cast<__mmask8>((1u << valid) - 1u);
#pragma GCC unroll 6
    for (int t = 0; t < kT; ++t) {
        const __m128 sum = sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
        _mm_mask_storeu_ps(y + t * y_stride + row, stored, sum);
    }
}

template <bool kBf16, int kT>
void multiply_rows(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
    for (size_t row = first; row < last; row += kRows) {
        const size_t valid = last - row < kRows ? last - row : kRows;
        if (w.columns % kLanes == 0) {
            multiply_tile<kBf16, kT, false>(w, row, valid, x, x_stride, y, y_stride);
        } else {
            multiply_tile<kBf16, kT, true>(w, row, valid, x, x_stride, y, y_stride);
        }
    }
}

template <bool kBf16>
void multiply(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
              size_t tokens, float* y, size_t y_stride) {
    size_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) {
        multiply_rows<kBf16, kTokens>(w, first, last, x + t * x_stride, x_stride, y + t * y_stride,
                                      y_stride);
    }
    x += t * x_stride;
    y += t * y_stride;
    switch (tokens - t) {
        case 1: return multiply_rows<kBf16, 1>(w, first, last, x, x_stride, y, y_stride);
        case 2: return multiply_rows<kBf16, 2>(w, first, last, x, x_stride, y, y_stride);
        case 3: return multiply_rows<kBf16, 3>(w, first, last, x, x_stride, y, y_stride);
        case 4: return multiply_rows<kBf16, 4>(w, first, last, x, x_stride, y, y_stride);
        case 5: return multiply_rows<kBf16, 5>(w, first, last, x, x_stride, y, y_stride);
        default: return;
    }
}

// Rounded to bfloat16, to the nearest, ties to even.
__m512 round_lanes(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    const __m512i rounded = _mm512_and_si512(_mm512_add_epi32(bits, half), upper);
    return _mm512_mask_mov_ps(_mm512_castsi512_ps(rounded), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

}  // namespace

void round(Weights weights, const float* x, size_t n, unsigned char* rounded) {
    if (weights == Weights::q8) return round_q8(x, n, rounded);
    float* values = reinterpret_cast<float*>(rounded);
    for (size_t i = 0; i < n; i += kLanes) {
        const __mmask16 mask = n - i < kLanes ? mask_of(n - i) : 0xFFFF;
        const __m512 own = _mm512_maskz_loadu_ps(mask, x + i);
        _mm512_mask_storeu_ps(values + i, mask, weights == Weights::bf16 ? round_lanes(own) : own);
    }
}

void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
            float* y, size_t y_stride) {
    const float* floats = reinterpret_cast<const float*>(x);
    const size_t stride = rounded_bytes(w.weights, w.columns) / sizeof(float);
    switch (w.weights) {
        case Weights::f32: return multiply<false>(w, first, last, floats, stride, tokens, y, y_stride);
        case Weights::bf16: return multiply<true>(w, first, last, floats, stride, tokens, y, y_stride);
        case Weights::q8: return matmul_q8(w, first, last, x, tokens, y, y_stride);
        case Weights::q4: return matmul_q4(w, first, last, floats, stride, tokens, y, y_stride);
        case Weights::q8_rows:
        case Weights::q4_rows: return;  // only for sum_rows
    }
}

}  // namespace rwkv::avx512
