// As q4_matmul_avx512.h and q4_avx512.cpp, with half of a tile at a time: the same numbers. 16-bit
// sums hold a group's products of numbers up to 15 and bytes: 8 * 2 * 15 * 128 < 2^15.

#include "operations.h"
#include "units_avx2.h"

namespace rwkv::avx2 {
namespace {

constexpr size_t kChunk = 4096;  // columns whose activations are held rounded, in whole groups
constexpr size_t kBlock = 64;    // bytes of 8 columns of a tile
constexpr size_t kSpan = 2 * kGroupQ4;
constexpr size_t kWords = 16;

// As in q4_matmul_avx512.h, of one token.
struct Rounded {
    alignas(32) int8_t upper[kChunk];
    alignas(32) int8_t lower[kChunk];
    float sums[kChunk / kGroupQ4];
};

// 32 integers that fit as bytes.
void store_bytes(const __m256i (&x)[4], int8_t* to) {
    const __m256i ab = _mm256_packs_epi32(x[0], x[1]);
    const __m256i cd = _mm256_packs_epi32(x[2], x[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), bytes);
}

void round_units(const float* x, size_t n, float inverse, Rounded& rounded) {
    const __m256 factor = _mm256_set1_ps(inverse);
    for (size_t group = 0; group * kGroupQ4 < n; ++group) {
        __m256i sum = _mm256_setzero_si256();
        for (size_t i = group * kGroupQ4; i < (group + 1) * kGroupQ4; i += 4 * kLanes) {
            __m256i low[4];
            __m256i high[4];
            for (size_t k = 0; k < 4; ++k) {
                const size_t at = i + k * kLanes;
                const __m256 values =
                    at < n ? _mm256_maskload_ps(x + at, mask_of(n - at)) : _mm256_setzero_ps();
                const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(values, factor));
                low[k] = _mm256_srai_epi32(_mm256_slli_epi32(whole, 24), 24);
                high[k] = _mm256_srai_epi32(_mm256_sub_epi32(whole, low[k]), 8);
                sum = _mm256_add_epi32(sum, whole);
            }
            store_bytes(low, rounded.lower + i);
            store_bytes(high, rounded.upper + i);
        }
        const __m128i half =
            _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        const __m128i quarter = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
        const __m128i whole = _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0xB1));
        rounded.sums[group] = static_cast<float>(_mm_cvtsi128_si32(whole));
    }
}

__m256i add_products(__m256i sum, __m256i numbers, const int8_t* activations) {
    int four;
    __builtin_memcpy(&four, activations, sizeof four);
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(numbers, _mm256_set1_epi32(four)));
}

// The sums over pairs of columns become those of both halves of a block.
__m256i add_pairs(__m256i a, __m256i b) {
    const __m256i one = _mm256_set1_epi16(1);
    return _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one));
}

// `half` is 0 for the first 8 rows of the tile, and 1 for the others.
__m256 multiply_half(const unsigned char* tile, size_t half, size_t groups, const Rounded& x) {
    const __m256i lower_half = _mm256_set1_epi8(15);
    __m256 sums = _mm256_setzero_ps();
    for (size_t group = 0; group < groups; ++group) {
        const unsigned char* record = tile + group * tile_bytes(kGroupQ4);
        __m256i upper[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        __m256i lower[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (size_t i = half * 64; i < tile_bytes(kGroupQ4); i += 128) prefetch(record + i + kAhead);
#pragma GCC unroll 8
        for (size_t j = 0; j < kGroupQ4; j += 8) {
            const unsigned char* block = record + 4 * kTileRows + j / 8 * kBlock + half * kBlock / 2;
            const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(block));
            const __m256i numbers[2] = {_mm256_and_si256(both, lower_half),
                                        _mm256_and_si256(_mm256_srli_epi16(both, 4), lower_half)};
#pragma GCC unroll 2
            for (int k = 0; k < 2; ++k) {
                const size_t column = group * kGroupQ4 + j + 4 * k;
                upper[k] = add_products(upper[k], numbers[k], x.upper + column);
                lower[k] = add_products(lower[k], numbers[k], x.lower + column);
            }
        }
        const __m256i high = _mm256_slli_epi32(add_pairs(upper[0], upper[1]), 8);
        const __m256i dot = _mm256_add_epi32(high, add_pairs(lower[0], lower[1]));
        const __m256 scale = load_weights<true>(record, half * kLanes);
        const __m256 least = load_weights<true>(record + 2 * kTileRows, half * kLanes);
        sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sums);
        sums = _mm256_fmadd_ps(_mm256_set1_ps(x.sums[group]), least, sums);
    }
    return sums;
}

void multiply_token(const Matrix& w, size_t first, size_t last, const float* x, float* y) {
    Rounded rounded;
    const Unit unit = unit_of<kBitsQ4>(x, w.columns);
    for (size_t start = 0; start < w.columns; start += kChunk) {
        const size_t columns = w.columns - start < kChunk ? w.columns - start : kChunk;
        round_units(x + start, columns, unit.inverse, rounded);
        for (size_t row = first / kLanes * kLanes; row < last; row += kLanes) {
            const size_t half = row % kTileRows / kLanes;
            const __m256 sums = multiply_half(row_of(w, row) + tile_bytes(start), half,
                                              (columns + kGroupQ4 - 1) / kGroupQ4, rounded);
            __m256i wanted = mask_of(last - row);
            if (row < first) wanted = _mm256_andnot_si256(mask_of(first - row), wanted);
            __m256 sum = _mm256_mul_ps(sums, _mm256_set1_ps(unit.unit));
            if (start > 0) sum = _mm256_add_ps(sum, _mm256_maskload_ps(y + row, wanted));
            _mm256_maskstore_ps(y + row, wanted, sum);
        }
    }
}

template <int kR>
void add_rows(const Matrix& w, const uint32_t* rows, size_t left, const float* x, size_t first,
              size_t last, float* y) {
    const unsigned char* data[kR];
    const unsigned char* next[kR];  // rows that come later, to be asked for now
    float values[kR];
    for (size_t r = 0; r < kR; ++r) {
        data[r] = row_of(w, rows[r]);
        next[r] = row_of(w, rows[kRowsAhead + r < left ? kRowsAhead + r : r]);
        values[r] = x[rows[r]];
    }
    for (size_t start = first / kGroupQ4 * kGroupQ4; start < last; start += kGroupQ4) {
        const size_t at = packed_bytes(start / kSpan * kSpan);
        const size_t group = start % kSpan / kGroupQ4;
        __m256 scales[kR];
        __m256 leasts[kR];
        for (int r = 0; r < kR; ++r) {
            prefetch(next[r] + at + 64 * group);
            const unsigned char* halves = data[r] + at + 4 * group;
            scales[r] = _mm256_set1_ps(load_bf16(halves) * values[r]);
            leasts[r] = _mm256_set1_ps(load_bf16(halves + 2) * values[r]);
        }
        for (size_t c = start; c < start + kGroupQ4 && c < last; c += kLanes) {
            if (c + kLanes <= first) continue;
            __m256i wanted = mask_of(last - c);
            if (c < first) wanted = _mm256_andnot_si256(mask_of(first - c), wanted);
            const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(c % kSpan / kWords * 4));
            const size_t word = c % kWords;
            __m256 sum = _mm256_maskload_ps(y + c, wanted);
            for (int r = 0; r < kR; ++r) {
                const auto* words = reinterpret_cast<const __m256i_u*>(data[r] + at + 8 + 4 * word);
                const __m256i numbers = _mm256_and_si256(
                    _mm256_srl_epi32(_mm256_loadu_si256(words), shift), _mm256_set1_epi32(15));
                sum = _mm256_add_ps(
                    sum, _mm256_fmadd_ps(scales[r], _mm256_cvtepi32_ps(numbers), leasts[r]));
            }
            _mm256_maskstore_ps(y + c, wanted, sum);
        }
    }
}

}  // namespace

void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    for (size_t t = 0; t < tokens; ++t) {
        multiply_token(w, first, last, x + t * x_stride, y + t * y_stride);
    }
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

}  // namespace rwkv::avx2
