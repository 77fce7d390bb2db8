#include "lanes_avx2.h"
#include "operations.h"
#include "rounding.h"

namespace rwkv {
namespace {

// What q8_tiles.h needs: products of pairs of 16-bit integers.
using Ints = __m256i;
constexpr size_t kTogether = 2;
constexpr size_t kTile = 6;

inline Floats zero_floats() { return _mm256_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm256_load_ps(p); }
inline void store_floats(float* p, Floats x) { _mm256_store_ps(p, x); }
inline Floats broadcast_float(const unsigned char* p) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(p));
}
inline Ints broadcast_int(const unsigned char* p) {
    int value;
    __builtin_memcpy(&value, p, sizeof value);
    return _mm256_set1_epi32(value);
}
inline Ints load_ints(const int32_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints dot(Ints sums, Ints weights, Ints numbers) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, numbers));
}
inline Ints start_sum(const unsigned char*) { return _mm256_setzero_si256(); }

// The first `count` <= 16 weights, then zeros.
inline __m256i load_bytes(const unsigned char* p, size_t count) {
    if (count >= 16) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
    }
    alignas(16) unsigned char bytes[16] = {};
    for (size_t i = 0; i < count; ++i) bytes[i] = p[i];
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Eight vectors of eight ints: columns become rows.
inline void transpose(__m256i (&v)[8]) {
    __m256i u[8];
    for (int i = 0; i < 8; i += 2) {
        u[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        u[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_unpacklo_epi64(u[i], u[i + 2]);
        v[i + 1] = _mm256_unpackhi_epi64(u[i], u[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(u[i + 1], u[i + 3]);
        v[i + 3] = _mm256_unpackhi_epi64(u[i + 1], u[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        u[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        u[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) v[i] = u[i];
}

inline void pack_rows(const Matrix& w, size_t row, size_t valid, size_t column, size_t count,
                      int32_t* to) {
    const unsigned char* rows[kLanes];
    for (size_t r = 0; r < kLanes; ++r) {
        rows[r] = row_of(w, row + (r < valid ? r : valid - 1)) + column;
    }
    const size_t ahead = kLanes * w.columns;
    for (size_t j = 0; j < kGroup; j += 16) {
        const size_t left = j < count ? count - j : 0;
        __m256i v[kLanes];
        for (size_t r = 0; r < kLanes; ++r) {
            // Rows are too short for the hardware to learn, so each block asks for the next one.
            // Behind the end of the matrix this is harmless.
            if (j % 64 == 0) prefetch(rows[r] + j + ahead);
            v[r] = load_bytes(rows[r] + j, left);
        }
        transpose(v);
        for (size_t i = 0; i < kLanes; ++i) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + (j / 2 + i) * kLanes), v[i]);
        }
    }
}

// Rounds kFine activations to numbers; returns their unit.
inline float round_fine(const __m256 (&x)[4], int16_t* numbers) {
    const __m256i magnitude = _mm256_set1_epi32(static_cast<int>(kMagnitude));
    __m256i largest = _mm256_setzero_si256();
    for (const __m256 own : x) {
        const __m256i bits = _mm256_and_si256(_mm256_castps_si256(own), magnitude);
        largest = _mm256_max_epu32(largest, bits);
    }
    alignas(32) uint32_t lanes[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
    for (const uint32_t lane : lanes) lanes[0] = lane > lanes[0] ? lane : lanes[0];
    const Unit unit = fine_unit(lanes[0]);
    const __m256 factor = _mm256_set1_ps(unit.inverse);
    const auto scaled = [&](__m256 own) { return _mm256_cvtps_epi32(_mm256_mul_ps(own, factor)); };
    for (size_t i = 0; i < 4; i += 2) {
        const __m256i narrow = _mm256_packs_epi32(scaled(x[i]), scaled(x[i + 1]));
        const __m256i ordered = _mm256_permute4x64_epi64(narrow, 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(numbers + i * kLanes), ordered);
    }
    return unit.unit;
}

}  // namespace
}  // namespace rwkv

#include "q8_tiles.h"

namespace rwkv::avx2 {
namespace {

// The first kFine weights from p, or `count` and then zeros, times as many numbers: sums of fours.
__m256i multiply_fine(const unsigned char* p, size_t count, __m256i first, __m256i second) {
    const __m256i weights = load_bytes(p, count);
    const __m256i more = load_bytes(p + 16, count > 16 ? count - 16 : 0);
    return _mm256_add_epi32(_mm256_madd_epi16(weights, first), _mm256_madd_epi16(more, second));
}

// One token: the lanes are four rows, whose weights are used as they lie.
void multiply_one(const Matrix& w, size_t first, size_t last, const unsigned char* x, float* y) {
    constexpr size_t kRows = 4;
    const RoundedQ8 parts(w.columns);
    const auto* numbers = reinterpret_cast<const __m256i_u*>(x + parts.numbers);
    const float* units = reinterpret_cast<const float*>(x);
    for (size_t row = first; row < last; row += kRows) {
        const size_t valid = last - row < kRows ? last - row : kRows;
        const unsigned char* data[kRows];
        const unsigned char* scales[kRows];
        for (size_t r = 0; r < kRows; ++r) {
            const size_t own = row + (r < valid ? r : 0);
            data[r] = row_of(w, own);
            scales[r] = scales_of(w, own);
        }
        __m128 total = _mm_setzero_ps();
        for (size_t group = 0; group < groups_of(w.columns); ++group) {
            __m128 part = _mm_setzero_ps();
            const size_t end =
                (group + 1) * kGroup < w.columns ? (group + 1) * kGroup : w.columns;
            for (size_t c = group * kGroup; c < end; c += kFine) {
                const __m256i lower = _mm256_loadu_si256(numbers + c / 16);
                const __m256i upper = _mm256_loadu_si256(numbers + c / 16 + 1);
                __m256i products[kRows];
                for (size_t r = 0; r < kRows; ++r) {
                    if (c % 64 == 0) prefetch(data[r] + c + kAhead);
                    products[r] = multiply_fine(data[r] + c, end - c, lower, upper);
                }
                const __m256i sums =
                    _mm256_hadd_epi32(_mm256_hadd_epi32(products[0], products[1]),
                                      _mm256_hadd_epi32(products[2], products[3]));
                const __m128i dots = _mm_add_epi32(_mm256_castsi256_si128(sums),
                                                   _mm256_extracti128_si256(sums, 1));
                part = _mm_fmadd_ps(_mm_cvtepi32_ps(dots), _mm_set1_ps(units[c / kFine]), part);
            }
            const __m128 scale =
                _mm_setr_ps(load_scale(scales[0], group), load_scale(scales[1], group),
                            load_scale(scales[2], group), load_scale(scales[3], group));
            total = _mm_fmadd_ps(part, scale, total);
        }
        float sums[kRows];
        _mm_storeu_ps(sums, total);
        for (size_t r = 0; r < valid; ++r) y[row + r] = sums[r];
    }
}

// y[c] += unit * (sum over some rows of numbers[r] * w[rows[r], c]) within a group of columns, for at
// most kFine rows; behind `count` numbers are 0. `next` are rows that will be wanted then.
void add_fine(const Matrix& w, const uint32_t* rows, size_t count, const uint32_t* next,
              size_t next_count, const int16_t* numbers, float unit, size_t first, size_t last,
              float* y) {
    const unsigned char* data[kFine];
    for (size_t r = 0; r < count + count % 2; ++r) data[r] = row_of(w, rows[r < count ? r : 0]);
    const __m256 factor = _mm256_set1_ps(unit);
    for (size_t c = first; c < last; c += 2 * kLanes) {
        const size_t left = last - c;
        if (c % 64 == 0) {
            for (size_t r = 0; r < next_count; ++r) prefetch(row_of(w, next[r]) + c);
        }
        __m256i low = _mm256_setzero_si256();
        __m256i high = _mm256_setzero_si256();
        for (size_t r = 0; r < count; r += 2) {
            int pair;
            __builtin_memcpy(&pair, numbers + r, sizeof pair);
            const __m256i factors = _mm256_set1_epi32(pair);
            const __m256i a = load_bytes(data[r] + c, left);
            const __m256i b = load_bytes(data[r + 1] + c, left);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), factors));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), factors));
        }
        const __m256i dots[2] = {_mm256_permute2x128_si256(low, high, 0x20),
                                 _mm256_permute2x128_si256(low, high, 0x31)};
        for (size_t i = 0; i < 2 && i * kLanes < left; ++i) {
            const __m256i mask = mask_of(left - i * kLanes);
            float* own = y + c + i * kLanes;
            const __m256 sum = _mm256_maskload_ps(own, mask);
            _mm256_maskstore_ps(own, mask, _mm256_fmadd_ps(to_floats(dots[i]), factor, sum));
        }
    }
}

}  // namespace

void round_q8(const float* x, size_t n, unsigned char* rounded) {
    const RoundedQ8 parts(n);
    float* units = reinterpret_cast<float*>(rounded);
    int16_t* numbers = reinterpret_cast<int16_t*>(rounded + parts.numbers);
    for (size_t i = 0; i < groups_of(n) * kGroup; i += kFine) {
        __m256 own[4];
        for (size_t j = 0; j < 4; ++j) {
            const size_t at = i + j * kLanes;
            own[j] = at < n ? _mm256_maskload_ps(x + at, mask_of(n - at)) : zero_floats();
        }
        units[i / kFine] = round_fine(own, numbers + i);
    }
}

void matmul_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
               float* y, size_t y_stride) {
    if (tokens == 1) return multiply_one(w, first, last, x, y);
    multiply_q8(w, first, last, x, tokens, y, y_stride);
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
              const float* x, size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; ++c) y[c] = 0;
    for (size_t i = 0; i < count;) {
        const size_t taken = take_fine(rows + i, count - i);
        const uint32_t* next = rows + i + taken;
        const size_t left = count + following - i - taken;
        const size_t coming = left > 0 ? take_fine(next, left) : 0;
        for (size_t start = first; start < last; start += kGroup) {
            const size_t group = start / kGroup;
            alignas(32) float values[kFine] = {};
            for (size_t r = 0; r < taken; ++r) {
                values[r] = x[rows[i + r]] * load_scale(scales_of(w, rows[i + r]), group);
            }
            __m256 own[4];
            for (size_t j = 0; j < 4; ++j) own[j] = load_floats(values + j * kLanes);
            int16_t numbers[kFine];
            const float unit = round_fine(own, numbers);
            const size_t end = last - start < kGroup ? last : start + kGroup;
            add_fine(w, rows + i, taken, next, coming, numbers, unit, start, end, y);
        }
        i += taken;
    }
}

}  // namespace rwkv::avx2
