#include "operations.h"
#include "q8_lanes_avx512.h"
#include "q8_tiles.h"

namespace rwkv::avx512 {
namespace {

// y[c] += unit * (sum over some rows of numbers[r] * w[rows[r], c]) within a group of columns.
void add_fine(const Matrix& w, const uint32_t* rows, size_t count, const int16_t* numbers, float unit,
              size_t first, size_t last, float* y) {
    const __m512 factor = _mm512_set1_ps(unit);
    for (size_t c = first; c < last; c += kLanes) {
        const __mmask16 mask = last - c < kLanes ? mask_of(last - c) : 0xFFFF;
        __m512i dots = _mm512_setzero_si512();
        for (size_t r = 0; r < count; ++r) {
            const __m128i bytes = _mm_maskz_loadu_epi8(mask, row_of(w, rows[r]) + c);
            const __m512i weights = _mm512_cvtepi8_epi32(bytes);
            dots = _mm512_add_epi32(dots, _mm512_mullo_epi32(weights, _mm512_set1_epi32(numbers[r])));
        }
        const __m512 sum = _mm512_maskz_loadu_ps(mask, y + c);
        _mm512_mask_storeu_ps(y + c, mask, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sum));
    }
}

}  // namespace

void round_q8(const float* x, size_t n, unsigned char* rounded) { round_activations(x, n, rounded); }

void matmul_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
               float* y, size_t y_stride) {
    multiply_q8(w, first, last, x, tokens, y, y_stride);
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t,
              const float* x, size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; ++c) y[c] = 0;
    for (size_t i = 0; i < count;) {
        const size_t taken = take_fine(rows + i, count - i);
        for (size_t start = first; start < last;) {
            const size_t group = start / kGroup;
            const size_t end = (group + 1) * kGroup < last ? (group + 1) * kGroup : last;
            alignas(64) float values[kFine] = {};
            for (size_t r = 0; r < taken; ++r) {
                values[r] = x[rows[i + r]] * load_scale(scales_of(w, rows[i + r]), group);
            }
            alignas(64) int16_t numbers[kFine];
            float unit;
            int32_t none;
            round_fine(_mm512_load_ps(values), _mm512_load_ps(values + kLanes),
                       reinterpret_cast<unsigned char*>(numbers), &unit, &none);
            add_fine(w, rows + i, taken, numbers, unit, start, end, y);
            start = end;
        }
        i += taken;
    }
}

}  // namespace rwkv::avx512
