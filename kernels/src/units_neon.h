// Units of activations, with NEON.
#pragma once

#include "lanes_neon.h"
#include "units.h"

namespace rwkv {
namespace {

// The largest magnitude, as bits.
inline uint32_t largest_magnitude(const float* x, size_t n) {
    const uint32x4_t magnitude = vdupq_n_u32(kMagnitude);
    uint32x4_t largest = vdupq_n_u32(0);
    for (size_t i = 0; i < n; i += kLanes) {
        const Floats own = load_lanes(x + i, mask_of(n - i));
        largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(own.low), magnitude));
        largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(own.high), magnitude));
    }
    return vmaxvq_u32(largest);
}

// As multiples of a unit, to the nearest, ties to even; NaN becomes 0.
inline int16x8_t round_lanes(Floats x, float inverse) {
    const Floats scaled = x * spread(inverse);
    return vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(scaled.low)), vcvtnq_s32_f32(scaled.high));
}

}  // namespace
}  // namespace rwkv
