// Rounding activations for weights that are integers, alike in every instruction set. Only the
// compiler's builtins.
#pragma once

#include "elements.h"

namespace rwkv {
namespace {

// Activations are rounded to multiples of `unit`; `inverse` is 1 / unit.
struct Unit {
    float unit;
    float inverse;
};

constexpr int kBitsQ4 = 13;  // so that the upper byte of two is a byte

constexpr uint32_t kMagnitude = 0x7FFFFFFF;  // the bits of a float without its sign

// `largest` are the bits of the largest magnitude: as integers they have the order of the numbers,
// with infinity and then NaN at the end. The unit is 2^-kBits of the power of two at or below it.
template <int kBits>
Unit unit_for(uint32_t largest) {
    constexpr uint32_t kInfinity = 0x7F800000;
    if (largest >= kInfinity) return {__builtin_nanf(""), 0.0f};
    const uint32_t exponent = largest >> 23;
    const uint32_t unit = exponent > kBits + 1 ? exponent - kBits : 1;
    const uint32_t bits[] = {unit << 23, (254 - unit) << 23};
    Unit result;
    __builtin_memcpy(&result, bits, sizeof result);
    return result;
}

}  // namespace
}  // namespace rwkv
