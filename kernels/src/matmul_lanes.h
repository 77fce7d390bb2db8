// Products with f32 and bf16 weights, for lanes that the including file defines. A tile is 4 rows x up to
// 3 tokens: with AVX2 12 accumulators, 3 activations and 1 weight fill 16 registers, with NEON two of
// each 32. Each (row, token) has one accumulator whatever the tile.

#include "rounding.h"

namespace rwkv {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTokens = 3;

// kTail: the columns are no multiple of the lanes. Known to the compiler, because otherwise it keeps
// the accumulators in memory for the sake of the tail.
template <bool kBf16, int kT, bool kTail>
void multiply_tile(const Matrix& w, size_t row, size_t valid, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
    // Rows past the end repeat the last one; their sums are not stored.
    const unsigned char* rows[kRows];
    for (size_t r = 0; r < kRows; ++r) rows[r] = row_of(w, row + (r < valid ? r : valid - 1));
    Floats sums[kRows][kT];
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
        for (int t = 0; t < kT; ++t) sums[r][t] = spread(0.0f);
    }
    const size_t whole = w.columns / kLanes * kLanes;
    // Rows are too short for the hardware to learn, so each tile asks for the next one. Behind the
    // end of the matrix this is harmless.
    constexpr size_t kElement = kBf16 ? 2 : 4;
    const size_t ahead = kRows * w.columns * kElement;
    for (size_t j = 0; j < whole; j += kLanes) {
        Floats xs[kT];
#pragma GCC unroll 3
        for (int t = 0; t < kT; ++t) xs[t] = load_lanes(x + t * x_stride + j);
#pragma GCC unroll 4
        for (size_t r = 0; r < kRows; ++r) {
            prefetch(rows[r] + j * kElement + ahead);
            const Floats weights = load_weights<kBf16>(rows[r], j);
#pragma GCC unroll 3
            for (int t = 0; t < kT; ++t) sums[r][t] = fmadd(weights, xs[t], sums[r][t]);
        }
    }
    if constexpr (kTail) {
        const size_t rest = w.columns - whole;
#pragma GCC unroll 3
        for (int t = 0; t < kT; ++t) {
            const Floats xs = load_lanes(x + t * x_stride + whole, mask_of(rest));
#pragma GCC unroll 4
            for (size_t r = 0; r < kRows; ++r) {
                const Floats weights = load_weights<kBf16>(rows[r], whole, rest);
                sums[r][t] = fmadd(weights, xs, sums[r][t]);
            }
        }
    }
#pragma GCC unroll 3
    for (int t = 0; t < kT; ++t) {
        const Four sum = sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
        store_four(y + t * y_stride + row, valid, sum);
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
        default: return;
    }
}

}  // namespace

void isa::round(Weights weights, const float* x, size_t n, unsigned char* rounded) {
    if (weights == Weights::q8) return isa::round_q8(x, n, rounded);
    float* values = reinterpret_cast<float*>(rounded);
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats own = load_lanes(x + i, mask);
        store_lanes(values + i, mask, weights == Weights::bf16 ? round_bf16(own) : own);
    }
}

void isa::matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
                 float* y, size_t y_stride) {
    const float* floats = reinterpret_cast<const float*>(x);
    const size_t stride = rounded_bytes(w.weights, w.columns) / sizeof(float);
    switch (w.weights) {
        case Weights::f32: return multiply<false>(w, first, last, floats, stride, tokens, y, y_stride);
        case Weights::bf16: return multiply<true>(w, first, last, floats, stride, tokens, y, y_stride);
        case Weights::q8: return isa::matmul_q8(w, first, last, x, tokens, y, y_stride);
        case Weights::q4: return isa::matmul_q4(w, first, last, floats, stride, tokens, y, y_stride);
        case Weights::q8_rows:
        case Weights::q4_rows: return;  // only for sum_rows
    }
}

}  // namespace rwkv
