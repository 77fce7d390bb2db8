// Units of activations, one by one.
#pragma once

#include "units.h"

namespace rwkv {
namespace {

// The largest magnitude, as bits.
inline uint32_t largest_of(const float* x, size_t n) {
    uint32_t largest = 0;
    for (size_t i = 0; i < n; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + i, sizeof bits);
        bits &= kMagnitude;
        if (bits > largest) largest = bits;
    }
    return largest;
}

template <int kBits>
Unit unit_of(const float* x, size_t n) {
    return unit_for<kBits>(largest_of(x, n));
}

// To the nearest integer, ties to even, by pushing the fraction out of the float; |x| <= 2^15.
inline int round_to_int16(float x) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
    const int value = static_cast<int>((x + kShift) - kShift);
    return value > 32767 ? 32767 : value;
}

}  // namespace
}  // namespace rwkv
