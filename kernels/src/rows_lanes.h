// Sums of rows, for lanes that the including file defines. Some rows at a time over all columns: memory
// is read in long runs, and the sums stay in the first-level cache. Each column adds its rows in order
// whatever their grouping.

#include "rounding.h"
#include "summing.h"

namespace rwkv {
namespace {

template <bool kBf16, int kR>
void add_rows(const Matrix& w, const uint32_t* rows, size_t left, const float* x, size_t first,
              size_t last, float* y) {
    constexpr size_t kElement = kBf16 ? 2 : 4;
    const unsigned char* data[kR];
    const unsigned char* next[kR];  // rows that come later, to be asked for now
    Floats factors[kR];
    for (size_t r = 0; r < kR; ++r) {
        data[r] = row_of(w, rows[r]);
        next[r] = row_of(w, rows[kRowsAhead + r < left ? kRowsAhead + r : r]);
        factors[r] = spread(kBf16 ? round_bf16(x[rows[r]]) : x[rows[r]]);
    }
    size_t c = first;
    for (; c + kLanes <= last; c += kLanes) {
        Floats sum = load_lanes(y + c);
        for (int r = 0; r < kR; ++r) {
            prefetch(next[r] + c * kElement);
            sum = fmadd(load_weights<kBf16>(data[r], c), factors[r], sum);
        }
        store_lanes(y + c, sum);
    }
    if (c < last) {
        const Mask mask = mask_of(last - c);
        Floats sum = load_lanes(y + c, mask);
        for (int r = 0; r < kR; ++r) {
            sum = fmadd(load_weights<kBf16>(data[r], c, last - c), factors[r], sum);
        }
        store_lanes(y + c, mask, sum);
    }
}

template <bool kBf16>
void sum_rows_of(const Matrix& w, const uint32_t* rows, size_t count, size_t following, const float* x,
                 size_t first, size_t last, float* y) {
    const size_t all = count + following;
    for (size_t c = first; c < last; ++c) y[c] = 0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) add_rows<kBf16, 8>(w, rows + i, all - i, x, first, last, y);
    for (; i + 2 <= count; i += 2) add_rows<kBf16, 2>(w, rows + i, all - i, x, first, last, y);
    if (i < count) add_rows<kBf16, 1>(w, rows + i, all - i, x, first, last, y);
}

}  // namespace

void isa::sum_rows(const Matrix& w, const uint32_t* rows, size_t count, size_t following, const float* x,
              size_t first, size_t last, float* y) {
    switch (w.weights) {
        case Weights::f32: return sum_rows_of<false>(w, rows, count, following, x, first, last, y);
        case Weights::bf16: return sum_rows_of<true>(w, rows, count, following, x, first, last, y);
        case Weights::q8_rows: return isa::sum_rows_q8(w, rows, count, following, x, first, last, y);
        case Weights::q4_rows: return isa::sum_rows_q4(w, rows, count, following, x, first, last, y);
        case Weights::q8:
        case Weights::q4: return;  // only for matmul
    }
}

void isa::sum_all_rows(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
                  size_t last, float* y, size_t y_stride) {
    sum_parts(w, x, x_stride, tokens, first, last, y, y_stride, isa::sum_rows);
}

}  // namespace rwkv
