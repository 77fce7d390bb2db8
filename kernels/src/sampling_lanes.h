// What the sampler does with whole vocabularies, for lanes that the including file defines.

#include "exponential.h"

namespace rwkv {
namespace {

// The weights of the lanes that are inside, -1 in the others, which no weight is.
inline Floats weights_of(const float* weights, size_t count) {
    const Mask mask = mask_of(count);
    return choose(inside(mask), load_lanes(weights, mask), spread(-1.0f));
}

}  // namespace

float isa::largest(const float* x, size_t n) {
    Floats best = spread(x[0]);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) best = maximum(best, load_lanes(x + i));
    float lanes[kLanes];
    store_lanes(lanes, best);
    for (size_t lane = 1; lane < kLanes; ++lane) {
        lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    }
    for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    return lanes[0];
}

double isa::weigh(const float* x, size_t n, float maximum, float scale, float* weights) {
    const Floats top = spread(maximum);
    const Floats factor = spread(scale);
    Doubles sums;
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats exponent = (load_lanes(x + i, mask) - top) * factor;
        const Chosen possible = both(inside(mask), at_least(exponent, spread(-87.0f)));
        const Floats w = only(possible, exponential(exponent));
        store_lanes(weights + i, mask, w);
        sums.add(w);
    }
    return sums.total();
}

Mass isa::mass_from(const float* weights, size_t n, float least) {
    const Floats from = spread(least);
    Doubles sums;
    size_t count = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        const Floats all = weights_of(weights + i, n - i);
        const Chosen counted = at_least(all, from);
        const unsigned bits = bits_of(counted);
        if (bits == 0) continue;
        sums.add(only(counted, all));
        count += static_cast<size_t>(__builtin_popcount(bits));
    }
    return {sums.total(), count};
}

size_t isa::keep_between(const float* weights, const uint32_t* ids, size_t n, float least, float end,
                         float* kept, uint32_t* kept_ids) {
    const Floats from = spread(least);
    const Floats to = spread(end);
    size_t count = 0;
    for (size_t i = 0; i < n; i += kLanes) {
        const Floats w = weights_of(weights + i, n - i);
        unsigned bits = bits_of(both(at_least(w, from), below(w, to)));
        if (bits == 0) continue;
        float lanes[kLanes];
        store_lanes(lanes, w);
        for (; bits != 0; bits &= bits - 1) {
            const size_t lane = static_cast<size_t>(__builtin_ctz(bits));
            if (kept_ids) kept_ids[count] = ids ? ids[i + lane] : static_cast<uint32_t>(i + lane);
            kept[count++] = lanes[lane];
        }
    }
    return count;
}

}  // namespace rwkv
