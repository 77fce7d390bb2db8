// The time mix of RWKV-4, for lanes that the including file defines.

#include "exponential.h"

namespace rwkv {
namespace {

inline Floats exponential_of(Floats x) { return keep_nan(x, exponential(x)); }

}  // namespace

void isa::wkv4(const Wkv4Channels& channels, float* numerator, float* denominator, float* exponent,
               float* y) {
    const size_t n = channels.size;
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats k = load_lanes(channels.k + i, mask);
        const Floats v = load_lanes(channels.v + i, mask);
        const Floats top = load_lanes(numerator + i, mask);
        const Floats bottom = load_lanes(denominator + i, mask);
        const Floats before = load_lanes(exponent + i, mask);
        const Floats bonus = load_lanes(channels.first + i, mask) + k;
        // A maximum keeps a NaN of its second argument, here k; one of the state is found again in
        // `past`.
        Floats greatest = maximum(before, bonus);
        Floats past = exponential_of(before - greatest);
        Floats now = exponential_of(bonus - greatest);
        const Floats seen = fmadd(past, top, now * v);
        store_lanes(y + i, mask, seen / fmadd(past, bottom, now));
        const Floats aged = before + load_lanes(channels.decay + i, mask);
        greatest = maximum(aged, k);
        past = exponential_of(aged - greatest);
        now = exponential_of(k - greatest);
        store_lanes(numerator + i, mask, fmadd(past, top, now * v));
        store_lanes(denominator + i, mask, fmadd(past, bottom, now));
        store_lanes(exponent + i, mask, greatest);
    }
}

}  // namespace rwkv
