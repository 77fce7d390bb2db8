// The time mix of RWKV-5 and 6, for lanes that the including file defines. Each value of y is one lane
// that adds the rows of the state in order.

namespace rwkv {
namespace {

// Columns [j, j + kV * lanes) of the state, or for kTail those left, fewer than the lanes.
template <int kV, bool kTail>
void update_columns(const Wkv5Head& head, size_t j, float bonus, float* state, float* y) {
    const size_t n = head.size;
    const Mask mask = mask_of(n - j);
    Floats v[kV], sums[kV];
    for (int c = 0; c < kV; ++c) {
        v[c] = load_lanes<kTail>(head.v + j + c * kLanes, mask);
        sums[c] = v[c] * spread(bonus);
    }
    for (size_t i = 0; i < n; ++i) {
        const Floats receptance = spread(head.r[i]);
        const Floats w = spread(head.w[i]);
        const Floats k = spread(head.k[i]);
        for (int c = 0; c < kV; ++c) {
            float* place = state + i * n + j + c * kLanes;
            const Floats row = load_lanes<kTail>(place, mask);
            sums[c] = fmadd(row, receptance, sums[c]);
            store_lanes<kTail>(place, mask, fmadd(row, w, k * v[c]));
        }
    }
    for (int c = 0; c < kV; ++c) store_lanes<kTail>(y + j + c * kLanes, mask, sums[c]);
}

}  // namespace

void isa::wkv5(const Wkv5Head& head, float* state, float* y) {
    const size_t n = head.size;
    Floats products = spread(0.0f);
    for (size_t i = 0; i < n; i += kLanes) {
        const Mask mask = mask_of(n - i);
        const Floats first = load_lanes(head.first + i, mask) * load_lanes(head.k + i, mask);
        products = fmadd(load_lanes(head.r + i, mask), first, products);
    }
    const float bonus = sum_lanes(products);
    size_t j = 0;
    for (; j + 4 * kLanes <= n; j += 4 * kLanes) update_columns<4, false>(head, j, bonus, state, y);
    for (; j + kLanes <= n; j += kLanes) update_columns<1, false>(head, j, bonus, state, y);
    if (j < n) update_columns<1, true>(head, j, bonus, state, y);
}

}  // namespace rwkv
