#include "operations.h"
#include "q4_matmul_avx512.h"

namespace rwkv::avx512 {
namespace {

constexpr size_t kSpan = 2 * kGroupQ4;  // columns of a record
constexpr size_t kWords = 16;           // integers of a record, and columns in one of their halves

// Some rows, and some that come later, to be asked for now.
template <int kR>
struct Rows {
    const unsigned char* data[kR];
    const unsigned char* next[kR];
    float values[kR];
};

// The columns of a record from `start` on, as far as they are in [first, last): kWhole says that they
// are. What a number adds to a sum is looked up: there are 16.
template <int kR, bool kWhole>
void add_span(const Rows<kR>& rows, size_t start, size_t first, size_t last, float* y) {
    const __m512 all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const size_t at = packed_bytes(start);
    __mmask16 wanted[8];
    __m512 sums[8];
#pragma GCC unroll 8
    for (size_t k = 0; k < 8; ++k) {
        const size_t column = start + k * kWords;
        if constexpr (!kWhole) {
            wanted[k] = column >= last ? 0 : last - column < kWords ? mask_of(last - column) : 0xFFFF;
            if (column < first) wanted[k] &= first - column < kWords ? ~mask_of(first - column) : 0;
        }
        sums[k] = load_lanes<!kWhole>(y + column, wanted[k]);
    }
    for (int r = 0; r < kR; ++r) {
        prefetch(rows.next[r] + at);
        prefetch(rows.next[r] + at + 64);
        const unsigned char* record = rows.data[r] + at;
        const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(record));
        const __m128 wide = _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16));
        const __m128 own = _mm_mul_ps(wide, _mm_set1_ps(rows.values[r]));  // of two groups
        const __m512 four = _mm512_broadcast_f32x4(own);
        const __m512 tables[2] = {
            _mm512_fmadd_ps(_mm512_permute_ps(four, 0x00), all, _mm512_permute_ps(four, 0x55)),
            _mm512_fmadd_ps(_mm512_permute_ps(four, 0xAA), all, _mm512_permute_ps(four, 0xFF))};
        const __m512i words = _mm512_loadu_si512(record + 8);
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) {
            const __m512i numbers = _mm512_srli_epi32(words, 4 * k);
            sums[k] = _mm512_add_ps(sums[k], _mm512_permutexvar_ps(numbers, tables[k / 4]));
        }
    }
#pragma GCC unroll 8
    for (size_t k = 0; k < 8; ++k) {
        store_lanes<!kWhole>(y + start + k * kWords, wanted[k], sums[k]);
    }
}

// As in rows_lanes.h.
template <int kR>
void add_rows(const Matrix& w, const uint32_t* rows, size_t left, const float* x, size_t first,
              size_t last, float* y) {
    Rows<kR> own;
    for (size_t r = 0; r < kR; ++r) {
        own.data[r] = row_of(w, rows[r]);
        own.next[r] = row_of(w, rows[kRowsAhead + r < left ? kRowsAhead + r : r]);
        own.values[r] = x[rows[r]];
    }
    for (size_t start = first / kSpan * kSpan; start < last; start += kSpan) {
        if (start >= first && start + kSpan <= last) {
            add_span<kR, true>(own, start, first, last, y);
        } else {
            add_span<kR, false>(own, start, first, last, y);
        }
    }
}

}  // namespace

void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    multiply_q4(w, first, last, x, x_stride, tokens, y, y_stride);
}

void sum_rows_q4(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
                 const float* x, size_t first, size_t last, float* y) {
    const size_t all = count + following;
    for (size_t c = first; c < last; ++c) y[c] = 0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) add_rows<8>(w, rows + i, all - i, x, first, last, y);
    for (; i + 2 <= count; i += 2) add_rows<2>(w, rows + i, all - i, x, first, last, y);
    if (i < count) add_rows<1>(w, rows + i, all - i, x, first, last, y);
}

}  // namespace rwkv::avx512
