// Helpers of the NEON files. Static, so that no other file can be linked with them. Lanes are two
// registers, so that sums have the order that they have with AVX2.
#pragma once

#include <arm_neon.h>

#include "elements.h"

namespace rwkv {
namespace {

struct Floats {
    float32x4_t low, high;
};
using Mask = size_t;  // how many lanes, from the first
struct Chosen {       // lanes that fulfil a condition
    uint32x4_t low, high;
};

constexpr size_t kLanes = 8;

inline Floats spread(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Floats load_lanes(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store_lanes(float* p, Floats value) {
    vst1q_f32(p, value.low);
    vst1q_f32(p + 4, value.high);
}

// The first `count` lanes of a load or store; any count from 8 means all of them.
inline Mask mask_of(size_t count) { return count; }

// kTail: only the lanes of the mask.
template <bool kTail = true>
inline Floats load_lanes(const float* p, Mask mask) {
    if (!kTail || mask >= kLanes) return load_lanes(p);
    float values[kLanes] = {};
    for (size_t i = 0; i < mask; ++i) values[i] = p[i];
    return load_lanes(values);
}

template <bool kTail = true>
inline void store_lanes(float* p, Mask mask, Floats value) {
    if (!kTail || mask >= kLanes) return store_lanes(p, value);
    float values[kLanes];
    store_lanes(values, value);
    for (size_t i = 0; i < mask; ++i) p[i] = values[i];
}

inline Floats operator+(Floats a, Floats b) {
    return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
inline Floats operator-(Floats a, Floats b) {
    return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
inline Floats operator*(Floats a, Floats b) {
    return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
inline Floats operator/(Floats a, Floats b) {
    return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)};
}
inline Floats fmadd(Floats a, Floats b, Floats c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline Floats fnmadd(Floats a, Floats b, Floats c) {
    return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
// Of a NaN and a number the NaN.
inline Floats maximum(Floats a, Floats b) {
    return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)};
}
inline Floats minimum(Floats a, Floats b) {
    return {vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)};
}
inline Floats to_nearest(Floats x) { return {vrndnq_f32(x.low), vrndnq_f32(x.high)}; }

// x * 2^n for whole n in [-126, 127].
inline Floats scale_by_power(Floats x, Floats n) {
    const auto power = [](float32x4_t exponent) {
        const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(exponent), vdupq_n_s32(127));
        return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    };
    return x * Floats{power(n.low), power(n.high)};
}

inline Chosen inside(Mask mask) {
    const uint32_t places[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint32x4_t count = vdupq_n_u32(static_cast<uint32_t>(mask < kLanes ? mask : kLanes));
    return {vcltq_u32(vld1q_u32(places), count), vcltq_u32(vld1q_u32(places + 4), count)};
}
inline Chosen not_a_number(Floats x) {
    return {vmvnq_u32(vceqq_f32(x.low, x.low)), vmvnq_u32(vceqq_f32(x.high, x.high))};
}
inline Chosen at_least(Floats a, Floats b) {
    return {vcgeq_f32(a.low, b.low), vcgeq_f32(a.high, b.high)};
}
inline Chosen below(Floats a, Floats b) {
    return {vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high)};
}
inline Chosen both(Chosen a, Chosen b) {
    return {vandq_u32(a.low, b.low), vandq_u32(a.high, b.high)};
}
inline Floats choose(Chosen chosen, Floats x, Floats otherwise) {
    return {vbslq_f32(chosen.low, x.low, otherwise.low),
            vbslq_f32(chosen.high, x.high, otherwise.high)};
}
inline Floats only(Chosen chosen, Floats x) { return choose(chosen, x, spread(0.0f)); }
inline unsigned bits_of(Chosen chosen) {
    const uint16_t values[kLanes] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t lanes = vcombine_u16(vmovn_u32(chosen.low), vmovn_u32(chosen.high));
    return vaddvq_u16(vandq_u16(lanes, vld1q_u16(values)));
}

// Into the second-level cache: there are too few buffers of the first to cover the memory's latency.
inline void prefetch(const unsigned char* p) { __builtin_prefetch(p, 0, 2); }

template <bool kBf16>
inline Floats load_weights(const unsigned char* row, size_t column) {
    if constexpr (kBf16) {
        const uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8(row + 2 * column));
        return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
                vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
    } else {
        return {vreinterpretq_f32_u8(vld1q_u8(row + 4 * column)),
                vreinterpretq_f32_u8(vld1q_u8(row + 4 * column + 16))};
    }
}

// The first `count` < 8 weights, then zeros.
template <bool kBf16>
inline Floats load_weights(const unsigned char* row, size_t column, size_t count) {
    float values[kLanes] = {};
    for (size_t i = 0; i < count; ++i) {
        values[i] = load(row, column + i, kBf16 ? Weights::bf16 : Weights::f32);
    }
    return load_lanes(values);
}

// To the nearest bfloat16, ties to even.
inline Floats round_bf16(Floats x) {
    const auto round = [](float32x4_t own) {
        const uint32x4_t bits = vreinterpretq_u32_f32(own);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t sum = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
        return vreinterpretq_f32_u32(vandq_u32(sum, vdupq_n_u32(0xFFFF0000u)));
    };
    return choose(not_a_number(x), x, {round(x.low), round(x.high)});
}

// The sums of the lanes of four vectors. Every sum of lanes goes through here, so that its order
// is always the same.
using Four = float32x4_t;

inline Four sum_lanes(Floats a, Floats b, Floats c, Floats d) {
    const float32x4_t low = vpaddq_f32(vpaddq_f32(a.low, b.low), vpaddq_f32(c.low, d.low));
    const float32x4_t high = vpaddq_f32(vpaddq_f32(a.high, b.high), vpaddq_f32(c.high, d.high));
    return vaddq_f32(low, high);
}

inline float sum_lanes(Floats a) { return vgetq_lane_f32(sum_lanes(a, a, a, a), 0); }

inline void store_four(float* p, Four four) { vst1q_f32(p, four); }

// The first `count` <= 4 of them.
inline void store_four(float* p, size_t count, Four four) {
    if (count == 4) return store_four(p, four);
    float values[4];
    store_four(values, four);
    for (size_t i = 0; i < count; ++i) p[i] = values[i];
}

// Sums of float32 lanes in float64.
struct Doubles {
    float64x2_t sums[4] = {vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0), vdupq_n_f64(0)};

    void add(Floats x) {
        sums[0] = vaddq_f64(sums[0], vcvt_f64_f32(vget_low_f32(x.low)));
        sums[1] = vaddq_f64(sums[1], vcvt_high_f64_f32(x.low));
        sums[2] = vaddq_f64(sums[2], vcvt_f64_f32(vget_low_f32(x.high)));
        sums[3] = vaddq_f64(sums[3], vcvt_high_f64_f32(x.high));
    }
    double total() const {
        return vaddvq_f64(vaddq_f64(sums[0], sums[2])) + vaddvq_f64(vaddq_f64(sums[1], sums[3]));
    }
};

}  // namespace
}  // namespace rwkv
