// Sums of q4 rows, for AVX-512 with and without integer dot products: the same numbers.
//
// All rows of a call lie in one part, so that activations times scales share a unit for each group of
// columns: they become 16-bit integers, the numbers of four rows are brought side by side, and their
// products are summed as integers, exactly.
#pragma once

#include "quads_avx512.h"
#include "units.h"

namespace rwkv {
namespace {

constexpr size_t kSpan = 2 * kGroupQ4;          // columns of a record
constexpr size_t kRecord = 8 + kGroupQ4;        // its bytes
constexpr size_t kRecords = kLanes / 2;         // at once: their groups are the lanes of a vector
constexpr size_t kQuads = kPart / 4;
constexpr size_t kChunkRows = 16;               // over all records before the next ones

// What the rows are multiplied with in each group of columns: 256 * upper + lower, of four rows in
// kQuadOrder. There are two groups in a record, each twice, as the vectors of `interleave` have
// columns 32 m + 4 l + v (lower half of a byte) and 16 more (upper half) in lane 4 l + m of vector v.
struct RowFactors {
    alignas(64) int32_t upper[kQuads][kRecords][4];
    alignas(64) int32_t lower[kQuads][kRecords][4];
    alignas(64) float units[kRecords][4];
    alignas(64) float leasts[kRecords][4];  // sums over the rows of activations times leasts

    // `at`: the first record's place in a row; records <= kRecords.
    void fill(const unsigned char* const* rows, const float* x, size_t count, size_t at,
              size_t records) {
        // Scale and least of every group of columns, as two bfloat16, then activations times scales.
        alignas(64) uint64_t pairs[kPart][kRecords];
        for (size_t r = 0; r < count; ++r) {
            for (size_t i = 0; i < records; ++i) {
                __builtin_memcpy(&pairs[r][i], rows[r] + at + i * kRecord, sizeof(uint64_t));
            }
        }
        const __mmask8 mask = static_cast<__mmask8>((1u << records) - 1u);
        const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(kMagnitude));
        const __m512i above = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
        __m512i largest = _mm512_setzero_si512();
        __m512 sums = _mm512_setzero_ps();
        for (size_t r = 0; r < count; ++r) {
            const __m512i own = _mm512_maskz_load_epi64(mask, pairs[r]);
            const __m512 value = _mm512_set1_ps(x[r]);
            const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(own, 16)), value);
            largest = _mm512_max_epu32(largest,
                                       _mm512_and_si512(_mm512_castps_si512(scaled), magnitude));
            const __m512 least = _mm512_castsi512_ps(_mm512_and_si512(own, above));
            sums = _mm512_fmadd_ps(least, value, sums);
            _mm512_store_ps(pairs[r], scaled);
        }
        store_twice(_mm512_castps_si512(sums), leasts);
        for (size_t r = count; r % 4 != 0; ++r) _mm512_store_ps(pairs[r], _mm512_setzero_ps());
        const __m512 inverse = set_units(largest);
        for (size_t first = 0; first < count; first += 4) {
            const auto round = [&](size_t r) {
                return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(pairs[first + r]), inverse));
            };
            const __m512i ab = pair_rows(round(0), round(1));
            const __m512i cd = pair_rows(round(2), round(3));
            store_twice(upper_bytes(ab, cd), upper[first / 4]);
            store_twice(lower_bytes(ab, cd), lower[first / 4]);
        }
    }

private:
    // Lanes [0, 1, 2, ...] become [0, 0, 1, 1], [2, 2, 3, 3], ...
    static void store_twice(__m512i lanes, void* to) {
        const __m512i order = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        const __m512i later = _mm512_add_epi32(order, _mm512_set1_epi32(8));
        _mm512_store_si512(to, _mm512_permutexvar_epi32(order, lanes));
        _mm512_store_si512(static_cast<char*>(to) + 64, _mm512_permutexvar_epi32(later, lanes));
    }

    // As unit_for<kBitsQ4>, for every lane; returns the inverses.
    __m512 set_units(__m512i largest) {
        const __m512i one = _mm512_set1_epi32(1);
        const __m512i exponent = _mm512_srli_epi32(largest, 23);
        const __m512i unit =
            _mm512_max_epi32(_mm512_sub_epi32(exponent, _mm512_set1_epi32(kBitsQ4)), one);
        const __mmask16 finite = _mm512_cmplt_epu32_mask(largest, _mm512_set1_epi32(0x7F800000));
        const __m512i nan = _mm512_set1_epi32(0x7FC00000);
        store_twice(_mm512_mask_slli_epi32(nan, finite, unit, 23), units);
        const __m512i inverse = _mm512_sub_epi32(_mm512_set1_epi32(254), unit);
        return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(finite, inverse, 23));
    }
};

inline __m512i add_bytes(__m512i sum, __m512i numbers, __m512i factors) {
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(sum, numbers, factors);
#else
    const __m512i pairs = _mm512_maddubs_epi16(numbers, factors);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

inline __m512i load_four(const int32_t* p) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}

// sums [8][kLanes] of a record += some rows: from `first` on, `count` in all, at most kChunkRows.
inline void add_record(const unsigned char* const* rows, size_t first, size_t count, size_t at,
                       const RowFactors& factors, size_t record, int32_t* sums) {
    const __m512i half = _mm512_set1_epi8(15);
    __m512i upper[8];
    __m512i lower[8];
    for (size_t i = 0; i < 8; ++i) upper[i] = lower[i] = _mm512_setzero_si512();
    for (size_t r = first; r < first + count; r += 4) {
        __m512i bytes[4], columns[4];
        for (size_t i = 0; i < 4; ++i) {
            bytes[i] = _mm512_loadu_si512(rows[r + kQuadOrder[i]] + at + 8);
        }
        interleave(bytes, columns);
        const __m512i high = load_four(factors.upper[r / 4][record]);
        const __m512i low = load_four(factors.lower[r / 4][record]);
#pragma GCC unroll 4
        for (size_t v = 0; v < 4; ++v) {
            const __m512i even = _mm512_and_si512(columns[v], half);
            const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(columns[v], 4), half);
            upper[v] = add_bytes(upper[v], even, high);
            lower[v] = add_bytes(lower[v], even, low);
            upper[4 + v] = add_bytes(upper[4 + v], odd, high);
            lower[4 + v] = add_bytes(lower[4 + v], odd, low);
        }
    }
    for (size_t i = 0; i < 8; ++i) {
        const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(upper[i], 8), lower[i]);
        int32_t* own = sums + i * kLanes;
        _mm512_store_si512(own, _mm512_add_epi32(_mm512_load_si512(own), dot));
    }
}

// The sums of a record as numbers, in the order of columns.
inline void finish_record(const RowFactors& factors, size_t record, const int32_t* sums, size_t count,
                          float* y) {
    const __m512 unit = _mm512_broadcast_f32x4(_mm_load_ps(factors.units[record]));
    const __m512 least = _mm512_broadcast_f32x4(_mm_load_ps(factors.leasts[record]));
    for (size_t odd = 0; odd < 2; ++odd) {
        __m512 v[4];
        for (size_t i = 0; i < 4; ++i) {
            const __m512i dots = _mm512_load_si512(sums + (4 * odd + i) * kLanes);
            v[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), unit, least);
        }
        const auto doubles = [](__m512 x) { return _mm512_castps_pd(x); };
        const __m512 ab = _mm512_unpacklo_ps(v[0], v[1]);
        const __m512 cd = _mm512_unpacklo_ps(v[2], v[3]);
        const __m512 more_ab = _mm512_unpackhi_ps(v[0], v[1]);
        const __m512 more_cd = _mm512_unpackhi_ps(v[2], v[3]);
        const __m512d columns[4] = {_mm512_unpacklo_pd(doubles(ab), doubles(cd)),
                                    _mm512_unpackhi_pd(doubles(ab), doubles(cd)),
                                    _mm512_unpacklo_pd(doubles(more_ab), doubles(more_cd)),
                                    _mm512_unpackhi_pd(doubles(more_ab), doubles(more_cd))};
        for (size_t m = 0; m < 4; ++m) {
            const size_t column = 32 * m + 16 * odd;
            if (column >= count) break;
            const __mmask16 mask = count - column < kLanes ? mask_of(count - column) : 0xFFFF;
            _mm512_mask_storeu_ps(y + column, mask, _mm512_castpd_ps(columns[m]));
        }
    }
}

// As sum_rows; `first` is a multiple of kSpan.
inline void sum_q4(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
                   const float* x, size_t first, size_t last, float* y) {
    const unsigned char* data[kPart];
    const unsigned char* next[kPart];  // the rows after these, to be asked for now
    float values[kPart];
    for (size_t r = 0; r < count; ++r) {
        data[r] = row_of(w, rows[r]);
        values[r] = x[rows[r]];
    }
    if (following > kPart) following = kPart;
    for (size_t r = 0; r < following; ++r) next[r] = row_of(w, rows[count + r]);
    // The last quad's missing rows have no factors.
    for (size_t r = count; r % 4 != 0; ++r) data[r] = data[0];
    RowFactors factors;
    alignas(64) int32_t sums[kRecords][kSpan];
    for (size_t start = first; start < last; start += kRecords * kSpan) {
        const size_t columns = last - start < kRecords * kSpan ? last - start : kRecords * kSpan;
        const size_t records = (columns + kSpan - 1) / kSpan;
        const size_t at = packed_bytes(start);
        factors.fill(data, values, count, at, records);
        for (size_t i = 0; i < records; ++i) {
            for (int32_t& sum : sums[i]) sum = 0;
        }
        const size_t chunks = (count + kChunkRows - 1) / kChunkRows;
        for (size_t chunk = 0; chunk < chunks; ++chunk) {
            const size_t row = chunk * kChunkRows;
            const size_t own = count - row < kChunkRows ? count - row : kChunkRows;
            const size_t coming = following * chunk / chunks;
            const size_t coming_end = following * (chunk + 1) / chunks;
            for (size_t i = 0; i < records; ++i) {
                const size_t place = at + i * kRecord;
                for (size_t r = coming; r < coming_end; ++r) {
                    prefetch(next[r] + place);
                    prefetch(next[r] + place + 64);
                }
                add_record(data, row, own, place, factors, i, sums[i]);
            }
        }
        for (size_t i = 0; i < records; ++i) {
            const size_t left = columns - i * kSpan < kSpan ? columns - i * kSpan : kSpan;
            finish_record(factors, i, sums[i], left, y + start + i * kSpan);
        }
    }
}

}  // namespace
}  // namespace rwkv
