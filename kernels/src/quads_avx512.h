// Four rows side by side, for integer dot products over rows.
#pragma once

#include "lanes_avx512.h"

namespace rwkv {
namespace {

// In which order the rows of a quad lie in the bytes of an integer.
constexpr size_t kQuadOrder[4] = {0, 2, 1, 3};

// 64 bytes of each row become four vectors of columns with a byte of each row, as in `rows`. In vector
// i are columns 4 i to 4 i + 3 of each 16.
inline void interleave(const __m512i (&rows)[4], __m512i (&columns)[4]) {
    const __m512i ab = _mm512_unpacklo_epi8(rows[0], rows[1]);
    const __m512i cd = _mm512_unpacklo_epi8(rows[2], rows[3]);
    columns[0] = _mm512_unpacklo_epi16(ab, cd);
    columns[1] = _mm512_unpackhi_epi16(ab, cd);
    const __m512i more_ab = _mm512_unpackhi_epi8(rows[0], rows[1]);
    const __m512i more_cd = _mm512_unpackhi_epi8(rows[2], rows[3]);
    columns[2] = _mm512_unpacklo_epi16(more_ab, more_cd);
    columns[3] = _mm512_unpackhi_epi16(more_ab, more_cd);
}

// 16-bit integers of two rows side by side.
inline __m512i pair_rows(__m512i a, __m512i b) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, a, _mm512_slli_epi32(b, 16));
}

// The lower bytes of a quad's integers, in kQuadOrder, from pairs of its rows.
inline __m512i lower_bytes(__m512i first, __m512i second) {
    return _mm512_mask_blend_epi8(0xAAAAAAAAAAAAAAAA, first, _mm512_slli_epi16(second, 8));
}

// What is left without the lower bytes, divided by 256.
inline __m512i upper_bytes(__m512i first, __m512i second) {
    const __m512i half = _mm512_set1_epi16(128);
    const __m512i a = _mm512_add_epi16(first, half);
    const __m512i b = _mm512_add_epi16(second, half);
    return _mm512_mask_blend_epi8(0xAAAAAAAAAAAAAAAA, _mm512_srli_epi16(a, 8), b);
}

}  // namespace
}  // namespace rwkv
