// As q8_matmul_avx512.h and rows_avx2.cpp. A tile is 4 rows x up to 2 tokens; for one token its rows
// follow one another.

#include "operations.h"
#include "units_avx2.h"

namespace rwkv::avx2 {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTokens = 2;
constexpr size_t kStep = 16;     // columns of one product
constexpr size_t kChunk = 4096;  // columns whose activations are held rounded, in whole groups

// Activations of some tokens, rounded; behind the last column of a chunk zeros fill the step.
struct Rounded {
    alignas(32) int16_t units[kTokens][kChunk];
    Unit unit[kTokens];
};

void round_units(const float* x, size_t n, float inverse, int16_t* units) {
    const __m256 factor = _mm256_set1_ps(inverse);
    const auto scaled = [&](size_t i) {
        const __m256 values = i < n ? _mm256_maskload_ps(x + i, mask_of(n - i)) : _mm256_setzero_ps();
        return _mm256_cvtps_epi32(_mm256_mul_ps(values, factor));
    };
    for (size_t i = 0; i < n; i += kStep) {
        const __m256i narrow = _mm256_packs_epi32(scaled(i), scaled(i + kLanes));
        const __m256i ordered = _mm256_permute4x64_epi64(narrow, _MM_SHUFFLE(3, 1, 2, 0));
        _mm256_store_si256(reinterpret_cast<__m256i*>(units + i), ordered);
    }
}

// The first `count` <= 16 weights, then zeros.
__m256i load_bytes(const unsigned char* p, size_t count) {
    if (count >= kStep) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
    }
    alignas(16) unsigned char bytes[kStep] = {};
    for (size_t i = 0; i < count; ++i) bytes[i] = p[i];
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// One row and one token: rows one after the other are one stream, which the hardware follows.
template <bool kTail>
__m256 multiply_row(const unsigned char* row, const unsigned char* scales, const int16_t* units,
                    size_t columns) {
    __m256 sum = _mm256_setzero_ps();
    for (size_t begin = 0; begin < columns; begin += kGroup) {
        const size_t end = columns - begin < kGroup ? columns : begin + kGroup;
        __m256i dot = _mm256_setzero_si256();
        prefetch(row + begin + kAhead);
        prefetch(row + begin + kAhead + 64);
        const auto multiply = [&](size_t j, size_t count) {
            const __m256i xs = _mm256_load_si256(reinterpret_cast<const __m256i*>(units + j));
            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(load_bytes(row + j, count), xs));
        };
        size_t j = begin;
        for (; j + kStep <= end; j += kStep) multiply(j, kStep);
        if constexpr (kTail) {
            if (j < end) multiply(j, end - j);
        }
        const __m256 scale = _mm256_set1_ps(load_scale(scales, begin / kGroup));
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sum);
    }
    return sum;
}

// Rows together and kT tokens.
template <int kT, bool kTail>
void multiply_together(const unsigned char* const* rows, const unsigned char* const* scales,
                       const Rounded& x, size_t stride, size_t columns, __m256 (&sums)[kRows][kT]) {
    for (size_t r = 0; r < kRows; ++r) {
        for (int t = 0; t < kT; ++t) sums[r][t] = _mm256_setzero_ps();
    }
    const size_t ahead = kRows * stride;
    for (size_t begin = 0; begin < columns; begin += kGroup) {
        const size_t end = columns - begin < kGroup ? columns : begin + kGroup;
        __m256i dots[kRows][kT];
        for (size_t r = 0; r < kRows; ++r) {
            for (int t = 0; t < kT; ++t) dots[r][t] = _mm256_setzero_si256();
            prefetch(rows[r] + begin + ahead);
            prefetch(rows[r] + begin + ahead + 64);
        }
        const auto multiply = [&](size_t j, size_t count) {
            __m256i xs[kT];
            for (int t = 0; t < kT; ++t) {
                xs[t] = _mm256_load_si256(reinterpret_cast<const __m256i*>(x.units[t] + j));
            }
            for (size_t r = 0; r < kRows; ++r) {
                const __m256i weights = load_bytes(rows[r] + j, count);
                for (int t = 0; t < kT; ++t) {
                    const __m256i products = _mm256_madd_epi16(weights, xs[t]);
                    dots[r][t] = _mm256_add_epi32(dots[r][t], products);
                }
            }
        };
        size_t j = begin;
        for (; j + kStep <= end; j += kStep) multiply(j, kStep);
        if constexpr (kTail) {
            if (j < end) multiply(j, end - j);
        }
        for (size_t r = 0; r < kRows; ++r) {
            const __m256 scale = _mm256_set1_ps(load_scale(scales[r], begin / kGroup));
            for (int t = 0; t < kT; ++t) {
                sums[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][t]), scale, sums[r][t]);
            }
        }
    }
}

// Columns [start, start + columns) of the sums; those of the first chunk are stored, others added.
// kTail: the columns are no multiple of a step; see matmul_avx2.cpp.
template <int kT, bool kTail>
void multiply_tile(const Matrix& w, size_t row, size_t valid, const Rounded& x, size_t start,
                   size_t columns, float* y, size_t y_stride) {
    // Rows past the end repeat the last one; their sums are not stored.
    const unsigned char* rows[kRows];
    const unsigned char* scales[kRows];
    for (size_t r = 0; r < kRows; ++r) {
        const size_t own = row + (r < valid ? r : valid - 1);
        rows[r] = row_of(w, own) + start;
        scales[r] = scales_of(w, own) + start / kGroup * sizeof(float);
    }
    __m256 sums[kRows][kT];
    if constexpr (kT == 1) {
        for (size_t r = 0; r < kRows; ++r) {
            sums[r][0] = multiply_row<kTail>(rows[r], scales[r], x.units[0], columns);
        }
    } else {
        multiply_together<kT, kTail>(rows, scales, x, w.columns, columns, sums);
    }
    const __m128i stored = _mm256_castsi256_si128(mask_of(valid));
#pragma GCC unroll 2
    for (int t = 0; t < kT; ++t) {
        __m128 sum = sum_lanes(sums[0][t], sums[1][t], sums[2][t], sums[3][t]);
        sum = _mm_mul_ps(sum, _mm_set1_ps(x.unit[t].unit));
        float* own = y + t * y_stride + row;
        if (start > 0) sum = _mm_add_ps(sum, _mm_maskload_ps(own, stored));
        _mm_maskstore_ps(own, stored, sum);
    }
}

template <int kT>
void multiply_rows(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
                   float* y, size_t y_stride) {
    Rounded rounded;
    for (int t = 0; t < kT; ++t) rounded.unit[t] = unit_of<kBitsQ8>(x + t * x_stride, w.columns);
    for (size_t start = 0; start < w.columns; start += kChunk) {
        const size_t columns = w.columns - start < kChunk ? w.columns - start : kChunk;
        for (int t = 0; t < kT; ++t) {
            round_units(x + t * x_stride + start, columns, rounded.unit[t].inverse,
                        rounded.units[t]);
        }
        for (size_t row = first; row < last; row += kRows) {
            const size_t valid = last - row < kRows ? last - row : kRows;
            if (columns % kStep == 0) {
                multiply_tile<kT, false>(w, row, valid, rounded, start, columns, y, y_stride);
            } else {
                multiply_tile<kT, true>(w, row, valid, rounded, start, columns, y, y_stride);
            }
        }
    }
}

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
        __m256 factors[kR];
        for (int r = 0; r < kR; ++r) {
            factors[r] = _mm256_set1_ps(values[r] * load_scale(scales[r], group));
            prefetch(next[r] + c);
            prefetch(next[r] + c + 64);
        }
        for (; c + kLanes <= end; c += kLanes) {
            __m256 sum = _mm256_loadu_ps(y + c);
            for (int r = 0; r < kR; ++r) {
                const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(data[r] + c));
                const __m256 weights = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                sum = _mm256_fmadd_ps(weights, factors[r], sum);
            }
            _mm256_storeu_ps(y + c, sum);
        }
        for (; c < end; ++c) {
            __m128 sum = _mm_load_ss(y + c);
            for (int r = 0; r < kR; ++r) {
                const __m128 weight = _mm_set_ss(static_cast<float>(load_q8(data[r], c)));
                sum = _mm_fmadd_ss(weight, _mm256_castps256_ps128(factors[r]), sum);
            }
            _mm_store_ss(y + c, sum);
        }
    }
}

}  // namespace

void matmul_q8(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    size_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) {
        multiply_rows<kTokens>(w, first, last, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
    if (t < tokens) {
        multiply_rows<1>(w, first, last, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
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

}  // namespace rwkv::avx2
