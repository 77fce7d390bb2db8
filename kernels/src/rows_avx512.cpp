#include "lanes_avx512.h"
#include "operations.h"

namespace rwkv::avx512 {
namespace {

// The rows are scattered over memory, so the hardware cannot guess the next one.
constexpr size_t kAhead = 6;

template <bool kBf16, int kBlocks>
void accumulate_block(const Matrix& w, const uint32_t* rows, size_t count, const float* x,
                      size_t column, float* y) {
    constexpr size_t kElement = kBf16 ? 2 : 4;
    constexpr size_t kBytes = kBlocks * kLanes * kElement;
    __m512 sums[kBlocks];
    for (int b = 0; b < kBlocks; ++b) sums[b] = _mm512_setzero_ps();
    for (size_t i = 0; i < count; ++i) {
        if (i + kAhead < count) {
            const unsigned char* next = row_of(w, rows[i + kAhead]) + column * kElement;
            for (size_t byte = 0; byte < kBytes; byte += 64) _mm_prefetch(next + byte, _MM_HINT_T0);
        }
        const unsigned char* row = row_of(w, rows[i]);
        const __m512 factor = _mm512_set1_ps(x[rows[i]]);
        for (int b = 0; b < kBlocks; ++b) {
            const __m512 weights = load_weights<kBf16>(row, column + b * kLanes);
            sums[b] = _mm512_fmadd_ps(weights, factor, sums[b]);
        }
    }
    for (int b = 0; b < kBlocks; ++b) {
        float* target = y + column + b * kLanes;
        _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), sums[b]));
    }
}

template <bool kBf16>
void accumulate_tail(const Matrix& w, const uint32_t* rows, size_t count, const float* x,
                     size_t column, __mmask16 mask, float* y) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < count; ++i) {
        const __m512 weights = load_weights<kBf16>(row_of(w, rows[i]), column, mask);
        sum = _mm512_fmadd_ps(weights, _mm512_set1_ps(x[rows[i]]), sum);
    }
    const __m512 old = _mm512_maskz_loadu_ps(mask, y + column);
    _mm512_mask_storeu_ps(y + column, mask, _mm512_add_ps(old, sum));
}

template <bool kBf16>
void accumulate(const Matrix& w, const uint32_t* rows, size_t count, const float* x, size_t first,
                size_t last, float* y) {
    size_t c = first;
    const auto fits = [&](size_t blocks) { return c + blocks * kLanes <= last; };
    for (; fits(12); c += 12 * kLanes) accumulate_block<kBf16, 12>(w, rows, count, x, c, y);
    for (; fits(4); c += 4 * kLanes) accumulate_block<kBf16, 4>(w, rows, count, x, c, y);
    for (; fits(1); c += kLanes) accumulate_block<kBf16, 1>(w, rows, count, x, c, y);
    if (c < last) accumulate_tail<kBf16>(w, rows, count, x, c, mask_of(last - c), y);
}

}  // namespace

void accumulate_rows(const Matrix& w, const uint32_t* rows, size_t count, const float* x,
                     size_t first, size_t last, float* y) {
    if (w.weights == Weights::bf16) {
        accumulate<true>(w, rows, count, x, first, last, y);
    } else {
        accumulate<false>(w, rows, count, x, first, last, y);
    }
}

}  // namespace rwkv::avx512
