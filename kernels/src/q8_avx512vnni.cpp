// With integer dot products rows of weights are made 128 more, as the first factors have no sign; sums
// begin with what makes good for it. All sums of fine groups are exact, so they may be made in any
// order.

#include "operations.h"
#include "q8_lanes_avx512.h"
#include "q8_tiles.h"
#include "quads_avx512.h"

namespace rwkv::avx512vnni {
namespace {

constexpr size_t kStrip = 64;  // columns in a vector

__m512i load_biased(const unsigned char* p, __mmask64 mask) {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, p), _mm512_set1_epi8(-128));
}

__mmask64 bytes_left(size_t count) {
    return count < 64 ? (__mmask64{1} << count) - 1 : ~__mmask64{0};
}

// Puts 64 sums in the order of `interleave` back into that of the columns.
void put_back(const float* sums, size_t stride, size_t count, float* y) {
    __m512i v[4];
    for (size_t i = 0; i < 4; ++i) v[i] = _mm512_load_si512(sums + i * stride);
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(v[0], v[1], 0xDD);
    const __m512i c = _mm512_shuffle_i32x4(v[2], v[3], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xDD);
    v[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    v[1] = _mm512_shuffle_i32x4(b, d, 0x88);
    v[2] = _mm512_shuffle_i32x4(a, c, 0xDD);
    v[3] = _mm512_shuffle_i32x4(b, d, 0xDD);
    for (size_t i = 0; i * kLanes < count; ++i) {
        const __mmask16 mask = count - i * kLanes < kLanes ? mask_of(count - i * kLanes) : 0xFFFF;
        _mm512_mask_storeu_epi32(y + i * kLanes, mask, v[i]);
    }
}

// What the rows of a fine group are multiplied with in each group of columns; a lane is a group.
struct FineFactors {
    static constexpr size_t kGroups = kLanes;
    alignas(64) int32_t numbers[kFine / 4][kGroups];  // of four rows, in kQuadOrder
    alignas(64) float units[kGroups];
    alignas(64) int32_t starts[kGroups];

    void fill(const Matrix& w, const uint32_t* rows, size_t count, const float* x, size_t group,
              size_t groups) {
        const __mmask16 mask = groups < kLanes ? mask_of(groups) : 0xFFFF;
        const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(kMagnitude));
        __m512 values[kFine];
        __m512i largest = _mm512_setzero_si512();
        for (size_t r = 0; r < count; ++r) {
            const unsigned char* scales = scales_of(w, rows[r]) + group * sizeof(float);
            values[r] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, scales), _mm512_set1_ps(x[rows[r]]));
            const __m512i bits = _mm512_and_si512(_mm512_castps_si512(values[r]), magnitude);
            largest = _mm512_max_epu32(largest, bits);
        }
        const __m512 inverse = set_units(largest);
        __m512i sum = _mm512_setzero_si512();
        for (size_t r = count; r % 4 != 0; ++r) values[r] = _mm512_setzero_ps();
        for (size_t first = 0; first < count; first += 4) {
            __m512i own[4];
            for (size_t r = 0; r < 4; ++r) {
                own[r] = _mm512_cvtps_epi32(_mm512_mul_ps(values[first + r], inverse));
                sum = _mm512_add_epi32(sum, own[r]);
            }
            _mm512_store_si512(numbers[first / 4], lower_bytes(pair_rows(own[0], own[1]),
                                                               pair_rows(own[2], own[3])));
        }
        _mm512_store_si512(starts, _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128)));
    }

private:
    // As fine_unit; returns the inverses.
    __m512 set_units(__m512i largest) {
        const __m512 limit = _mm512_set1_ps(127.0f);
        const __m512 value = _mm512_castsi512_ps(largest);
        const __mmask16 finite = _mm512_cmplt_epu32_mask(largest, _mm512_set1_epi32(0x7F800000));
        const __mmask16 large = _mm512_cmp_ps_mask(value, _mm512_set1_ps(0x1p-100f), _CMP_NLT_UQ);
        const __m512 nan = _mm512_set1_ps(__builtin_nanf(""));
        const __m512 unit = _mm512_maskz_div_ps(large, value, limit);
        _mm512_store_ps(units, _mm512_mask_mov_ps(nan, finite, unit));
        return _mm512_maskz_div_ps(finite & large, limit, value);
    }
};

// Adds the rows of one fine group to sums of columns from `first`, in the order of `interleave`.
// `next` are rows that will be wanted then.
void add_fine(const Matrix& w, const uint32_t* rows, size_t count, const uint32_t* next,
              size_t next_count, const FineFactors& factors, size_t first, size_t last, float* sums) {
    const unsigned char* data[kFine];
    const unsigned char* coming[kFine];
    const size_t quads = (count + 3) / 4;
    for (size_t r = 0; r < 4 * quads; ++r) data[r] = row_of(w, rows[r < count ? r : 0]);
    for (size_t r = 0; r < next_count; ++r) {
        coming[r] = row_of(w, next[r]);
        prefetch(scales_of(w, next[r]) + first / kGroup * sizeof(float));
    }
    for (size_t c = first; c < last; c += kStrip) {
        const __mmask64 mask = bytes_left(last - c);
        const size_t group = (c - first) / kGroup;
        for (size_t r = 0; r < next_count; ++r) prefetch(coming[r] + c);
        __m512i dots[4];
        for (__m512i& dot : dots) dot = _mm512_set1_epi32(factors.starts[group]);
        for (size_t quad = 0; quad < quads; ++quad) {
            __m512i bytes[4], columns[4];
            for (size_t r = 0; r < 4; ++r) {
                bytes[r] = load_biased(data[4 * quad + kQuadOrder[r]] + c, mask);
            }
            interleave(bytes, columns);
            const __m512i numbers = _mm512_set1_epi32(factors.numbers[quad][group]);
            for (size_t i = 0; i < 4; ++i) dots[i] = dot(dots[i], columns[i], numbers);
        }
        const __m512 unit = _mm512_set1_ps(factors.units[group]);
        for (size_t i = 0; i < 4; ++i) {
            float* own = sums + (c - first) + i * kLanes;
            _mm512_store_ps(own, _mm512_fmadd_ps(to_floats(dots[i]), unit, _mm512_load_ps(own)));
        }
    }
}

void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
              const float* x, size_t first, size_t last, float* y) {
    constexpr size_t kColumns = FineFactors::kGroups * kGroup;
    for (size_t start = first; start < last;) {
        const size_t end = last - start < kColumns ? last : start + kColumns;
        const size_t group = start / kGroup;
        const size_t groups = groups_of(end) - group;
        alignas(64) float sums[kColumns] = {};
        FineFactors factors;
        for (size_t i = 0; i < count;) {
            const size_t taken = take_fine(rows + i, count - i);
            const size_t next = i + taken;
            const size_t left = count + following - next < kFine ? count + following - next : kFine;
            const size_t coming = left > 0 ? take_fine(rows + next, left) : 0;
            factors.fill(w, rows + i, taken, x, group, groups);
            add_fine(w, rows + i, taken, rows + next, coming, factors, start, end, sums);
            i = next;
        }
        for (size_t c = start; c < end; c += kStrip) {
            put_back(sums + (c - start), kLanes, end - c < kStrip ? end - c : kStrip, y + c);
        }
        start = end;
    }
}

// A part of the hidden rows for some tokens: what add_tiles takes, for a group of rows.
struct PartNumbers {
    struct Token {
        float units[kFines];
        int32_t starts[kFines];
        unsigned char numbers[kGroup];
    };
    Token tokens[kMaxSummed];
};

void sum_all_q8(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
                size_t last, float* y, size_t y_stride) {
    static_assert(kPart == kGroup, "a part is laid out as a group of columns");
    constexpr size_t kVectors = kGroup / kLanes;
    alignas(64) unsigned char panel[kVectors][kRecord];
    alignas(64) float sums[kVectors][kMaxSummed * kLanes] = {};
    alignas(64) PartNumbers numbers;
    for (unsigned char* own : panel) _mm512_store_ps(own, _mm512_set1_ps(1));
    const size_t group = first / kGroup;
    for (size_t begin = 0; begin < w.rows; begin += kPart) {
        const size_t rows = w.rows - begin < kPart ? w.rows - begin : kPart;
        alignas(64) float scales[kPart] = {};
        for (size_t r = 0; r < rows; ++r) scales[r] = load_scale(scales_of(w, begin + r), group);
        for (size_t t = 0; t < tokens; ++t) {
            PartNumbers::Token& own = numbers.tokens[t];
            const float* values = x + t * x_stride + begin;
            for (size_t r = 0; r < kPart; r += kFine) {
                const auto lanes = [&](size_t at) {
                    const size_t left = at < rows ? rows - at : 0;
                    const __mmask16 mask = left < kLanes ? mask_of(left) : 0xFFFF;
                    return _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, values + at),
                                         _mm512_load_ps(scales + at));
                };
                round_fine(lanes(r), lanes(r + kLanes), own.numbers + r, own.units + r / kFine,
                           own.starts + r / kFine);
            }
        }
        for (size_t c = first; c < last; c += kStrip) {
            const __mmask64 mask = bytes_left(last - c);
            unsigned char(*to)[kRecord] = panel + (c - first) / kLanes;
            for (size_t r = 0; r < kPart; r += 4) {
                __m512i bytes[4], columns[4];
                for (size_t i = 0; i < 4; ++i) {
                    const size_t row = begin + (r + i < rows ? r + i : rows - 1);
                    const unsigned char* own = row_of(w, row) + c;
                    prefetch(own + kPart * w.columns);
                    bytes[i] = load_biased(own, mask);
                }
                interleave(bytes, columns);
                for (size_t i = 0; i < 4; ++i) {
                    _mm512_store_si512(to[i] + kScales + r / 4 * kBlock, columns[i]);
                }
            }
        }
        const auto* token = reinterpret_cast<const unsigned char*>(numbers.tokens);
        const Inputs inputs{token + offsetof(PartNumbers::Token, numbers), token,
                            token + offsetof(PartNumbers::Token, starts), sizeof(PartNumbers::Token)};
        for (size_t i = 0; i * kLanes < padded(last - first, kStrip); i += kTogether) {
            add_tiles<kTogether, false>({panel[i], kRecord, sums[i], kMaxSummed * kLanes}, kFines, inputs,
                                        tokens);
        }
    }
    for (size_t t = 0; t < tokens; ++t) {
        for (size_t c = first; c < last; c += kStrip) {
            put_back(&sums[(c - first) / kLanes][t * kLanes], kMaxSummed * kLanes,
                     last - c < kStrip ? last - c : kStrip, y + t * y_stride + c);
        }
    }
}

}  // namespace

void round(Weights weights, const float* x, size_t n, unsigned char* rounded) {
    if (weights != Weights::q8) return avx512::round(weights, x, n, rounded);
    round_activations(x, n, rounded);
}

void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
            float* y, size_t y_stride) {
    if (w.weights == Weights::q4) {
        const size_t stride = rounded_bytes(w.weights, w.columns) / sizeof(float);
        const float* floats = reinterpret_cast<const float*>(x);
        return matmul_q4(w, first, last, floats, stride, tokens, y, y_stride);
    }
    if (w.weights != Weights::q8) return avx512::matmul(w, first, last, x, tokens, y, y_stride);
    multiply_q8(w, first, last, x, tokens, y, y_stride);
}

void sum_rows(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
              const float* x, size_t first, size_t last, float* y) {
    switch (w.weights) {
        case Weights::q8_rows: return sum_rows_q8(w, rows, count, following, x, first, last, y);
        case Weights::q4_rows: return sum_rows_q4(w, rows, count, following, x, first, last, y);
        default: return avx512::sum_rows(w, rows, count, following, x, first, last, y);
    }
}

void sum_all_rows(const Matrix& w, const float* x, size_t x_stride, size_t tokens, size_t first,
                  size_t last, float* y, size_t y_stride) {
    if (w.weights == Weights::q8_rows) {
        sum_all_q8(w, x, x_stride, tokens, first, last, y, y_stride);
    } else {
        avx512::sum_all_rows(w, x, x_stride, tokens, first, last, y, y_stride);
    }
}

}  // namespace rwkv::avx512vnni
