// Operations on vectors, for lanes that the including file defines.

#include "exponential.h"

namespace rwkv {
namespace {

inline Floats negative(Floats x) { return spread(0.0f) - x; }

inline Floats sigmoid_of(Floats x) {
    const Floats one = spread(1.0f);
    return keep_nan(x, one / (one + exponential(negative(x))));
}

// A template, so that each map is inlined into its loop.
template <class Map>
void map_elements(float* x, const float* bias, size_t n, Map map) {
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        store_lanes(x + i, mask, map(load_lanes(x + i, mask) + load_lanes(bias + i, mask)));
    }
}

}  // namespace

void isa::layer_norm(const float* x, const float* weight, const float* bias, size_t n, float eps,
                     float* y) {
    Floats sum = spread(0.0f);
    for (size_t i = 0; i < n; i += kLanes) sum = sum + load_lanes(x + i, mask_of(n - i));
    const float length = static_cast<float>(n);
    const Floats mean = spread(sum_lanes(sum) / length);
    Floats squares = spread(0.0f);
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats d = only(inside(mask), load_lanes(x + i, mask) - mean);
        squares = fmadd(d, d, squares);
    }
    const Floats scale = spread(1.0f / __builtin_sqrtf(sum_lanes(squares) / length + eps));
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats d = load_lanes(x + i, mask) - mean;
        const Floats scaled = d * scale * load_lanes(weight + i, mask);
        store_lanes(y + i, mask, scaled + load_lanes(bias + i, mask));
    }
}

void isa::token_shift(const float* x, const float* previous, const float* mix, size_t n, float* y) {
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats now = load_lanes(x + i, mask);
        const Floats step = load_lanes(previous + i, mask) - now;
        store_lanes(y + i, mask, fmadd(step, load_lanes(mix + i, mask), now));
    }
}

void isa::sigmoid(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](Floats value) { return sigmoid_of(value); });
}

void isa::decay6(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](Floats value) {
        return keep_nan(value, exponential(negative(exponential(value))));
    });
}

void isa::decay7(float* x, const float* bias, size_t n) {
    map_elements(x, bias, n, [](Floats value) {
        const Floats s = sigmoid_of(value);
        return keep_nan(s, exponential(s * spread(-0.606530660f)));
    });
}

}  // namespace rwkv
