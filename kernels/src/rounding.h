// How activations are rounded, alike in every instruction set, and where they lie then. Only the
// compiler's builtins.
#pragma once

#include "units.h"

namespace rwkv {
namespace {

constexpr size_t kFines = kGroup / kFine;  // in a group of weights

inline size_t padded(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Bytes from one token's rounded activations to the next one's: what any instruction set needs.
inline size_t rounded_bytes(Weights weights, size_t n) {
    const size_t groups = groups_of(n);
    const size_t size = weights == Weights::q8 ? groups * (kGroup * 2 + kFines * 8) : n * 4;
    // A line more than a power of two, so that tokens do not compete for the same lines of a cache.
    return padded(size, 64) / 128 * 128 + 128 + 64;
}

// Where the parts of q8 activations lie: a float32 unit for each fine group, an int32 for each (-128
// times the sum of its numbers, as weights are 128 too large), then the numbers, zeros behind the last
// up to a whole group.
struct RoundedQ8 {
    explicit RoundedQ8(size_t n)
        : sums(groups_of(n) * kFines * 4), numbers(padded(groups_of(n) * kFines * 8, 64)) {}
    size_t sums;
    size_t numbers;
};

// `largest` are the bits of the largest magnitude: as integers they have the order of the numbers,
// with infinity and then NaN at the end.
inline Unit fine_unit(uint32_t largest) {
    constexpr uint32_t kInfinity = 0x7F800000;
    constexpr uint32_t kLeast = (127 - 100) << 23;
    if (largest >= kInfinity) return {__builtin_nanf(""), 0.0f};
    if (largest < kLeast) return {0.0f, 0.0f};
    float value;
    __builtin_memcpy(&value, &largest, sizeof value);
    return {value / 127.0f, 127.0f / value};
}

// To the nearest bfloat16, ties to even.
inline float round_bf16(float x) {
    if (x != x) return x;
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// How many of `rows` lie in the fine group of the first.
inline size_t take_fine(const uint32_t* rows, size_t count) {
    size_t taken = 1;
    while (taken < count && rows[taken] / kFine == rows[0] / kFine) ++taken;
    return taken;
}

}  // namespace
}  // namespace rwkv
