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

// y[c] += unit * (sum over some rows of numbers[r] * w[rows[r], c]) within a group of columns.
void add_fine(const Matrix& w, const uint32_t* rows, size_t count, const int16_t* numbers, float unit,
              size_t first, size_t last, float* y) {
    const __m256 factor = _mm256_set1_ps(unit);
    for (size_t c = first; c < last; c += kLanes) {
        const size_t left = last - c;
        __m256i dots = _mm256_setzero_si256();
        for (size_t r = 0; r < count; ++r) {
            const unsigned char* bytes = row_of(w, rows[r]) + c;
            long long eight = 0;
            __builtin_memcpy(&eight, bytes, left < kLanes ? left : kLanes);
            const __m256i weights = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight));
            dots = _mm256_add_epi32(dots, _mm256_mullo_epi32(weights, _mm256_set1_epi32(numbers[r])));
        }
        const __m256i mask = mask_of(left);
        const __m256 sum = _mm256_maskload_ps(y + c, mask);
        _mm256_maskstore_ps(y + c, mask, _mm256_fmadd_ps(to_floats(dots), factor, sum));
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
    multiply_q8(w, first, last, x, tokens, y, y_stride);
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t,
              const float* x, size_t first, size_t last, float* y) {
    for (size_t c = first; c < last; ++c) y[c] = 0;
    for (size_t i = 0; i < count;) {
        const size_t taken = take_fine(rows + i, count - i);
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
            add_fine(w, rows + i, taken, numbers, unit, start, end, y);
        }
        i += taken;
    }
}

}  // namespace rwkv::avx2
