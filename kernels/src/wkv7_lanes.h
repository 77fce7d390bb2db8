// The time mix of RWKV-7, for lanes that the including file defines.

namespace rwkv {
namespace {

// Rows [i, i + kR) of the state. Two passes over them: what is removed must be known first.
// kTail: the head's size is no multiple of the lanes.
template <int kR, bool kTail>
void update_rows(const Wkv7Head& head, size_t i, float* state, float* y) {
    const size_t n = head.size;
    const Floats zero = spread(0.0f);
    Floats removed[4] = {zero, zero, zero, zero};
    Floats read[4] = {zero, zero, zero, zero};
    for (size_t j = 0; j < n; j += kLanes) {
        const Mask mask = mask_of(n - j);
        const Floats kk = load_lanes<kTail>(head.kk + j, mask);
        for (int r = 0; r < kR; ++r) {
            const Floats row = load_lanes<kTail>(state + (i + r) * n + j, mask);
            removed[r] = fnmadd(row, kk, removed[r]);
        }
    }
    float amounts[4];
    store_four(amounts, sum_lanes(removed[0], removed[1], removed[2], removed[3]));
    for (size_t j = 0; j < n; j += kLanes) {
        const Mask mask = mask_of(n - j);
        const Floats w = load_lanes<kTail>(head.w + j, mask);
        const Floats k = load_lanes<kTail>(head.k + j, mask);
        const Floats kk_a = load_lanes<kTail>(head.kk_a + j, mask);
        const Floats receptance = load_lanes<kTail>(head.r + j, mask);
        for (int r = 0; r < kR; ++r) {
            float* place = state + (i + r) * n + j;
            Floats row = load_lanes<kTail>(place, mask);
            Floats added = k * spread(head.v[i + r]);
            added = fmadd(kk_a, spread(amounts[r]), added);
            row = fmadd(row, w, added);
            store_lanes<kTail>(place, mask, row);
            read[r] = fmadd(row, receptance, read[r]);
        }
    }
    float sums[4];
    store_four(sums, sum_lanes(read[0], read[1], read[2], read[3]));
    for (int r = 0; r < kR; ++r) y[i + r] = sums[r];
}

template <bool kTail>
void update_state(const Wkv7Head& head, float* state, float* y) {
    size_t i = 0;
    for (; i + 4 <= head.size; i += 4) update_rows<4, kTail>(head, i, state, y);
    for (; i < head.size; ++i) update_rows<1, kTail>(head, i, state, y);
}

}  // namespace

void isa::wkv7(const Wkv7Head& head, float* state, float* y) {
    if (head.size % kLanes == 0) {
        update_state<false>(head, state, y);
    } else {
        update_state<true>(head, state, y);
    }
}

}  // namespace rwkv
