// Rows are added in pairs that begin with an even one. A row that is left out has the activation 0:
// then it needs not be read, as nothing times 0 would be added.

#include "lanes_avx512.h"
#include "operations.h"
#include "rounding.h"

namespace rwkv::avx512bf16 {
namespace {

constexpr size_t kStrip = 32;  // columns in a vector

// Columns of two rows side by side: the lower 16 and the upper 16.
struct Pairs {
    __m512bh lower, upper;
};

Pairs interleave(__m512i a, __m512i b) {
    alignas(64) static constexpr uint16_t kLower[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5,
                                                        37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42,
                                                        11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i lower = _mm512_load_si512(kLower);
    const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(16));
    return {reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(a, lower, b)),
            reinterpret_cast<__m512bh>(_mm512_permutex2var_epi16(a, upper, b))};
}

// Two activations as bfloat16, the first in the lower half.
uint32_t round_pair(float a, float b) {
    const float rounded[] = {round_bf16(a), round_bf16(b)};
    uint32_t bits[2];
    __builtin_memcpy(bits, rounded, sizeof bits);
    return bits[0] >> 16 | bits[1];
}

struct Pair {
    const unsigned char* first;
    const unsigned char* second;
    bool has_first, has_second;  // a row that is left out is not read
    __m512bh factors;
};

template <int kP>
void add_pairs(const Pair* pairs, const unsigned char* const* next, size_t next_count, size_t first,
               size_t last, float* y) {
    for (size_t c = first; c < last; c += kStrip) {
        const size_t left = last - c;
        const __mmask32 mask = left < kStrip ? (__mmask32{1} << left) - 1 : ~__mmask32{0};
        const __mmask16 lower = static_cast<__mmask16>(mask);
        const __mmask16 upper = static_cast<__mmask16>(mask >> 16);
        __m512 low = _mm512_maskz_loadu_ps(lower, y + c);
        __m512 high = _mm512_maskz_loadu_ps(upper, y + c + kLanes);
        for (size_t i = 0; i < next_count; ++i) prefetch(next[i] + 2 * c);
        for (int p = 0; p < kP; ++p) {
            const Pair& pair = pairs[p];
            const __mmask32 own = pair.has_first ? mask : 0;
            const __mmask32 other = pair.has_second ? mask : 0;
            const Pairs weights = interleave(_mm512_maskz_loadu_epi16(own, pair.first + 2 * c),
                                             _mm512_maskz_loadu_epi16(other, pair.second + 2 * c));
            low = _mm512_dpbf16_ps(low, weights.lower, pair.factors);
            high = _mm512_dpbf16_ps(high, weights.upper, pair.factors);
        }
        _mm512_mask_storeu_ps(y + c, lower, low);
        _mm512_mask_storeu_ps(y + c + kLanes, upper, high);
    }
}

void sum_pairs(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
              const float* x, size_t first, size_t last, float* y) {
    constexpr size_t kAtOnce = 4;
    for (size_t c = first; c < last; ++c) y[c] = 0;
    Pair pairs[kPart / 2];
    size_t used = 0;
    for (size_t i = 0; i < count; ++used) {
        const uint32_t row = rows[i];
        const bool even = row % 2 == 0;
        const bool both = even && i + 1 < count && rows[i + 1] == row + 1;
        const float a = even ? x[row] : 0;
        const float b = even ? (both ? x[row + 1] : 0) : x[row];
        const int bits = static_cast<int>(round_pair(a, b));
        pairs[used] = {row_of(w, row), row_of(w, both ? row + 1 : row), even, both || !even,
                       reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits))};
        i += both ? 2 : 1;
    }
    size_t p = 0;
    for (; p + kAtOnce <= used; p += kAtOnce) {
        // The rows of the following pairs, to be asked for now.
        const unsigned char* next[2 * kAtOnce];
        size_t coming = 0;
        for (size_t i = p + kAtOnce; i < used && i < p + 2 * kAtOnce; ++i) {
            if (pairs[i].has_first) next[coming++] = pairs[i].first;
            if (pairs[i].has_second) next[coming++] = pairs[i].second;
        }
        for (size_t i = count; i < count + following && p + 2 * kAtOnce > used; ++i) {
            if (coming == 2 * kAtOnce) break;
            next[coming++] = row_of(w, rows[i]);
        }
        add_pairs<kAtOnce>(pairs + p, next, coming, first, last, y);
    }
    for (; p < used; ++p) add_pairs<1>(pairs + p, nullptr, 0, first, last, y);
}

// sums [kT, 64] += a part of the rows. `panel` [pairs][64 columns][2], `x` [kT][pairs][2].
template <int kT>
void add_tile(const unsigned char* panel, const unsigned char* x, size_t x_stride, float* sums) {
    __m512 parts[kT][4];
#pragma GCC unroll 6
    for (int t = 0; t < kT; ++t) {
        for (int i = 0; i < 4; ++i) parts[t][i] = _mm512_setzero_ps();
    }
    for (size_t p = 0; p < kPart / 2; ++p) {
        __m512bh weights[4];
        for (int i = 0; i < 4; ++i) {
            weights[i] = reinterpret_cast<__m512bh>(_mm512_load_si512(panel + (p * 4 + i) * 64));
        }
        for (int t = 0; t < kT; ++t) {
            int pair;
            __builtin_memcpy(&pair, x + t * x_stride + 4 * p, sizeof pair);
            const auto factors = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            for (int i = 0; i < 4; ++i) {
                parts[t][i] = _mm512_dpbf16_ps(parts[t][i], weights[i], factors);
            }
        }
    }
    for (int t = 0; t < kT; ++t) {
        for (int i = 0; i < 4; ++i) {
            float* own = sums + t * 64 + i * kLanes;
            _mm512_store_ps(own, _mm512_add_ps(_mm512_load_ps(own), parts[t][i]));
        }
    }
}

void add_tiles(const unsigned char* panel, const unsigned char* x, size_t x_stride, size_t tokens,
               float* sums) {
    size_t t = 0;
    for (; t + 6 <= tokens; t += 6) add_tile<6>(panel, x + t * x_stride, x_stride, sums + t * 64);
    x += t * x_stride;
    sums += t * 64;
    switch (tokens - t) {
        case 1: return add_tile<1>(panel, x, x_stride, sums);
        case 2: return add_tile<2>(panel, x, x_stride, sums);
        case 3: return add_tile<3>(panel, x, x_stride, sums);
        case 4: return add_tile<4>(panel, x, x_stride, sums);
        case 5: return add_tile<5>(panel, x, x_stride, sums);
        default: return;
    }
}

// As sum_all_rows, for at most 64 columns.
void sum_strip(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
               size_t last, float* y, size_t y_stride) {
    constexpr size_t kRowBytes = kPart * 2;
    alignas(64) unsigned char panel[kPart / 2 * 4 * 64];
    alignas(64) unsigned char rounded[kMaxSummed * kRowBytes];
    alignas(64) float sums[kMaxSummed * 64] = {};
    const auto load = [&](size_t row, size_t c) {
        if (row >= w.rows || c >= last) return _mm512_setzero_si512();
        const size_t left = last - c;
        const __mmask32 mask = left < kStrip ? (__mmask32{1} << left) - 1 : ~__mmask32{0};
        return _mm512_maskz_loadu_epi16(mask, row_of(w, row) + 2 * c);
    };
    for (size_t begin = 0; begin < w.rows; begin += kPart) {
        for (size_t p = 0; p < kPart / 2; ++p) {
            const size_t row = begin + 2 * p;
            for (size_t half = 0; half < 2; ++half) {
                const size_t c = first + half * kStrip;
                const Pairs pairs = interleave(load(row, c), load(row + 1, c));
                unsigned char* to = panel + (p * 4 + 2 * half) * 64;
                _mm512_store_si512(to, reinterpret_cast<__m512i>(pairs.lower));
                _mm512_store_si512(to + 64, reinterpret_cast<__m512i>(pairs.upper));
            }
            // Behind the end of the matrix this is harmless.
            const unsigned char* next = row_of(w, row + kPart) + 2 * first;
            prefetch(next);
            prefetch(next + 64);
            prefetch(next + 2 * w.columns);
            prefetch(next + 2 * w.columns + 64);
        }
        const size_t rows = w.rows - begin < kPart ? w.rows - begin : kPart;
        for (size_t t = 0; t < tokens; ++t) {
            for (size_t r = 0; r < kPart; r += kLanes) {
                const size_t left = r < rows ? rows - r : 0;
                const __mmask16 mask = left < kLanes ? mask_of(left) : 0xFFFF;
                const __m512 own = _mm512_maskz_loadu_ps(mask, x + t * x_stride + begin + r);
                _mm256_store_si256(reinterpret_cast<__m256i*>(rounded + t * kRowBytes + 2 * r),
                                   reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(own)));
            }
        }
        add_tiles(panel, rounded, kRowBytes, tokens, sums);
    }
    for (size_t t = 0; t < tokens; ++t) {
        for (size_t c = first; c < last; ++c) y[t * y_stride + c] = sums[t * 64 + c - first];
    }
}

}  // namespace

void sum_rows(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
              const float* x, size_t first, size_t last, float* y) {
    if (w.weights != Weights::bf16) return avx512vnni::sum_rows(w, rows, count, following, x, first, last, y);
    sum_pairs(w, rows, count, following, x, first, last, y);
}

void sum_all_rows(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
                  size_t last, float* y, size_t y_stride) {
    if (w.weights != Weights::bf16) {
        return avx512vnni::sum_all_rows(w, x, x_stride, tokens, first, last, y, y_stride);
    }
    for (size_t start = first; start < last; start += 64) {
        const size_t end = last - start < 64 ? last : start + 64;
        sum_strip(w, x, x_stride, tokens, start, end, y, y_stride);
    }
}

}  // namespace rwkv::avx512bf16
