#include "lanes_avx2.h"
#include "operations.h"
#include "rounding.h"

namespace rwkv {
namespace {

// What q8_tiles.h needs: products of pairs of 16-bit integers.
using Ints = __m256i;
constexpr size_t kBytes = 2;
constexpr int kTogether = 1;
constexpr int kTile = 6;

inline Floats zero_floats() { return _mm256_setzero_ps(); }
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline void store_floats(float* p, Floats x) { _mm256_store_ps(p, x); }
inline Floats broadcast_float(const unsigned char* p) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(p));
}
inline Ints broadcast_int(const unsigned char* p) {
    int value;
    __builtin_memcpy(&value, p, sizeof value);
    return _mm256_set1_epi32(value);
}
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

// Columns 0 and 2, and 1 and 3, as 16-bit integers; activations lie in the same order.
struct Block {
    __m256i even;
    __m256i odd;
};

inline Block load_block(const unsigned char* p) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p));
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16(bytes, 8)};
}

using Numbers = Block;

inline Numbers load_numbers(const unsigned char* p) { return {broadcast_int(p), broadcast_int(p + 4)}; }
inline Ints dot(Ints sums, const Block& weights, const Numbers& numbers) {
    const __m256i even = _mm256_madd_epi16(weights.even, numbers.even);
    const __m256i odd = _mm256_madd_epi16(weights.odd, numbers.odd);
    return _mm256_add_epi32(_mm256_add_epi32(sums, even), odd);
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

// The first `count` <= 16 weights, then zeros.
__m256i load_bytes(const unsigned char* p, size_t count) {
    if (count >= 16) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
    }
    alignas(16) unsigned char bytes[16] = {};
    for (size_t i = 0; i < count; ++i) bytes[i] = p[i];
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
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
    int32_t* starts = reinterpret_cast<int32_t*>(rounded + parts.sums);
    int16_t* numbers = reinterpret_cast<int16_t*>(rounded + parts.numbers);
    for (size_t i = 0; i < groups_of(n) * kGroup; i += kFine) {
        __m256 own[4];
        for (size_t j = 0; j < 4; ++j) {
            const size_t at = i + j * kLanes;
            own[j] = at < n ? _mm256_maskload_ps(x + at, mask_of(n - at)) : zero_floats();
        }
        units[i / kFine] = round_fine(own, numbers + i);
        int32_t sum = 0;
        for (size_t j = i; j < i + kFine; j += 4) {
            sum += numbers[j] + numbers[j + 1] + numbers[j + 2] + numbers[j + 3];
            // See Block.
            const int16_t second = numbers[j + 1];
            numbers[j + 1] = numbers[j + 2];
            numbers[j + 2] = second;
        }
        starts[i / kFine] = -128 * sum;
    }
}

void matmul_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
               float* y, size_t y_stride) {
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
