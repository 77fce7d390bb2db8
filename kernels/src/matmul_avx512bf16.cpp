// Products of bfloat16 pairs. A tile is 4 rows x up to 6 tokens. Each (row, token) has one accumulator
// of 16 lanes whatever the tile.

#include "lanes_avx512.h"
#include "operations.h"
#include "rounding.h"

namespace rwkv::avx512bf16 {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTokens = 6;
constexpr size_t kStep = 32;  // columns of one product

__m512bh load_pairs(const unsigned char* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}

__m512bh load_pairs(const unsigned char* p, size_t count) {
    const __mmask32 mask = (__mmask32{1} << count) - 1;
    return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
}

// One row and one token. Rows one after the other are one stream, which the hardware follows.
__m512 multiply_row(const unsigned char* row, const unsigned char* x, size_t columns) {
    __m512 sum = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + kStep <= columns; j += kStep) {
        prefetch(row + 2 * j + kAhead);
        sum = _mm512_dpbf16_ps(sum, load_pairs(row + 2 * j), load_pairs(x + 2 * j));
    }
    if (j < columns) {
        sum = _mm512_dpbf16_ps(sum, load_pairs(row + 2 * j, columns - j), load_pairs(x + 2 * j));
    }
    return sum;
}

// kTail: the columns are no multiple of a step. Known to the compiler, because otherwise it keeps the
// accumulators in memory for the sake of the tail.
template <int kT, bool kTail>
void multiply_together(const unsigned char* const* rows, const unsigned char* x, size_t x_stride,
                       size_t columns, __m512 (&sums)[kRows][kT]) {
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 6
        for (int t = 0; t < kT; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    const size_t whole = columns / kStep * kStep;
    // Rows are too short for the hardware to learn, so each tile asks for the next one. Behind the
    // end of the matrix this is harmless.
    const size_t ahead = kRows * columns * 2;
    for (size_t j = 0; j < whole; j += kStep) {
        __m512bh xs[kT];
        for (int t = 0; t < kT; ++t) xs[t] = load_pairs(x + t * x_stride + 2 * j);
        for (size_t r = 0; r < kRows; ++r) {
            prefetch(rows[r] + 2 * j + ahead);
            const __m512bh weights = load_pairs(rows[r] + 2 * j);
            for (int t = 0; t < kT; ++t) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], weights, xs[t]);
        }
    }
    if constexpr (kTail) {
        for (int t = 0; t < kT; ++t) {
            const __m512bh xs = load_pairs(x + t * x_stride + 2 * whole);
            for (size_t r = 0; r < kRows; ++r) {
                const __m512bh weights = load_pairs(rows[r] + 2 * whole, columns - whole);
                sums[r][t] = _mm512_dpbf16_ps(sums[r][t], weights, xs);
            }
        }
    }
}

template <int kT, bool kTail>
void multiply_tile(const Matrix& w, size_t row, size_t valid, const unsigned char* x, size_t x_stride,
                   float* y, size_t y_stride) {
    // Rows past the end repeat the last one; their sums are not stored.
    const unsigned char* rows[kRows];
    for (size_t r = 0; r < kRows; ++r) rows[r] = row_of(w, row + (r < valid ? r : valid - 1));
    __m512 sums[kRows][kT];
    if constexpr (kT == 1) {
        for (size_t r = 0; r < kRows; ++r) sums[r][0] = multiply_row(rows[r], x, w.columns);
    } else {
        multiply_together<kT, kTail>(rows, x, x_stride, w.columns, sums);
    }
    const __mmask8 stored = static_cast<__mmask8>((1u << valid) - 1u);
#pragma GCC unroll 6
    for (int t = 0; t < kT; ++t) {
        const __m128 sum = sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
        _mm_mask_storeu_ps(y + t * y_stride + row, stored, sum);
    }
}

template <int kT>
void multiply_rows(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t x_stride,
                   float* y, size_t y_stride) {
    for (size_t row = first; row < last; row += kRows) {
        const size_t valid = last - row < kRows ? last - row : kRows;
        if (w.columns % kStep == 0) {
            multiply_tile<kT, false>(w, row, valid, x, x_stride, y, y_stride);
        } else {
            multiply_tile<kT, true>(w, row, valid, x, x_stride, y, y_stride);
        }
    }
}

}  // namespace

void round(Weights weights, const float* x, size_t n, unsigned char* rounded) {
    if (weights != Weights::bf16) return avx512vnni::round(weights, x, n, rounded);
    for (size_t i = 0; i < padded(n, kStep); i += kLanes) {
        const size_t left = i < n ? n - i : 0;
        const __m512 own = _mm512_maskz_loadu_ps(left < kLanes ? mask_of(left) : 0xFFFF, x + i);
        _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(rounded + 2 * i),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(own)));
    }
}

void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
            float* y, size_t y_stride) {
    if (w.weights != Weights::bf16) {
        return avx512vnni::matmul(w, first, last, x, tokens, y, y_stride);
    }
    const size_t stride = rounded_bytes(Weights::bf16, w.columns);
    size_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) {
        multiply_rows<kTokens>(w, first, last, x + t * stride, stride, y + t * y_stride, y_stride);
    }
    x += t * stride;
    y += t * y_stride;
    switch (tokens - t) {
        case 1: return multiply_rows<1>(w, first, last, x, stride, y, y_stride);
        case 2: return multiply_rows<2>(w, first, last, x, stride, y, y_stride);
        case 3: return multiply_rows<3>(w, first, last, x, stride, y, y_stride);
        case 4: return multiply_rows<4>(w, first, last, x, stride, y, y_stride);
        case 5: return multiply_rows<5>(w, first, last, x, stride, y, y_stride);
        default: return;
    }
}

}  // namespace rwkv::avx512bf16
