// exp of float32 lanes. Static, so that no other file can be linked with it. The including file
// defines what lanes are.
#pragma once

namespace rwkv {
namespace {

// exp of x clamped to [-87, 88], by 2^n * P(r) with |r| <= ln(2) / 2 and P a polynomial of degree 6
// fitted to exp.
inline Floats exponential(Floats x) {
    x = minimum(maximum(x, spread(-87.0f)), spread(88.0f));
    const Floats n = to_nearest(x * spread(1.44269504f));
    Floats r = fnmadd(n, spread(0.693359375f), x);
    r = fnmadd(n, spread(-2.12194440e-4f), r);
    Floats p = spread(1.9875691500e-4f);
    p = fmadd(p, r, spread(1.3981999507e-3f));
    p = fmadd(p, r, spread(8.3334519073e-3f));
    p = fmadd(p, r, spread(4.1665795894e-2f));
    p = fmadd(p, r, spread(1.6666665459e-1f));
    p = fmadd(p, r, spread(5.0000001201e-1f));
    p = fmadd(p * r, r, r);
    return scale_by_power(p + spread(1.0f), n);
}

// The clamp of exponential() would hide a NaN of `x`, so it is put back.
inline Floats keep_nan(Floats x, Floats result) { return choose(not_a_number(x), x, result); }

}  // namespace
}  // namespace rwkv
