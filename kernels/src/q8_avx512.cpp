#include "operations.h"
#include "q8_matmul_avx512.h"

namespace rwkv::avx512 {
namespace {

// As in rows_avx512.cpp, with a factor for each row in each group of columns.
template <int kR>
void add_rows(const Matrix& w, const uint32_t* rows, size_t left, const float* x, size_t first,
              size_t last, float* y) {
    const unsigned char* data[kR];
    const unsigned char* next[kR];  // rows that come later, to be asked for now
    const unsigned char* scales[kR];
    float values[kR];
    for (size_t r = 0; r < kR; ++r) {
        data[r] = row_of(w, rows[r]);
        next[r] = row_of(w, rows[kRowsAhead + r < left ? kRowsAhead + r : r]);
        scales[r] = scales_of(w, rows[r]);
        values[r] = x[rows[r]];
    }
    for (size_t c = first; c < last;) {
        const size_t group = c / kGroup;
        const size_t end = (group + 1) * kGroup < last ? (group + 1) * kGroup : last;
        __m512 factors[kR];
        for (int r = 0; r < kR; ++r) {
            factors[r] = _mm512_set1_ps(values[r] * load_scale(scales[r], group));
            prefetch(next[r] + c);
            prefetch(next[r] + c + 64);
        }
        for (; c + kLanes <= end; c += kLanes) {
            __m512 sum = _mm512_loadu_ps(y + c);
            for (int r = 0; r < kR; ++r) {
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(data[r] + c));
                const __m512 weights = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                sum = _mm512_fmadd_ps(weights, factors[r], sum);
            }
            _mm512_storeu_ps(y + c, sum);
        }
        if (c < end) {
            const __mmask16 mask = mask_of(end - c);
            __m512 sum = _mm512_maskz_loadu_ps(mask, y + c);
            for (int r = 0; r < kR; ++r) {
                const __m128i bytes = _mm_maskz_loadu_epi8(mask, data[r] + c);
                const __m512 weights = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                sum = _mm512_fmadd_ps(weights, factors[r], sum);
            }
            _mm512_mask_storeu_ps(y + c, mask, sum);
            c = end;
        }
    }
}

}  // namespace

void matmul_q8(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    multiply_q8(w, first, last, x, x_stride, tokens, y, y_stride);
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t following, const float* x,
                 size_t first, size_t last, float* y) {
    const size_t all = count + following;
    for (size_t c = first; c < last; ++c) y[c] = 0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) add_rows<8>(w, rows + i, all - i, x, first, last, y);
    for (; i + 2 <= count; i += 2) add_rows<2>(w, rows + i, all - i, x, first, last, y);
    if (i < count) add_rows<1>(w, rows + i, all - i, x, first, last, y);
}

}  // namespace rwkv::avx512
