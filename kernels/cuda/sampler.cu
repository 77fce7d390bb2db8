#include "sampler.cuh"

#include "launch.cuh"
#include "primitives.cuh"

namespace rwkv::cuda {
namespace {

using Wide = unsigned long long;

constexpr int kThreads = 1024;
constexpr int kBits = 10;  // of a weight that one round of the search looks at
constexpr int kBins = 1 << kBits;
static_assert(kBins == kThreads, "every thread owns a bin");
constexpr int kRounds = 3;  // weights are at most 1, so the upper two bits are zero
constexpr double kUnits = 17592186044416.0;  // 2^44

__device__ inline Wide units(float weight) { return static_cast<Wide>(weight * kUnits); }

// What the threads of a block share.
struct Room {
    Wide bins[kThreads];
    Wide answer, rest;
    float best[kThreads / kWarp];
    uint32_t best_id[kThreads / kWarp];
    uint32_t flag;
};

// bins[i] = the sum of bins[0 ... i].
__device__ inline void scan(Room& room) {
    const int id = static_cast<int>(threadIdx.x);
    for (int step = 1; step < kThreads; step *= 2) {
        __syncthreads();
        const Wide other = id >= step ? room.bins[id - step] : 0;
        __syncthreads();
        room.bins[id] += other;
    }
    __syncthreads();
}

// The bits of the largest weight w so that the sum of value(i) over all weights of at least w reaches
// `target`; 0 if it never does. `rest` gets what is missing when only larger weights are counted.
template <typename Weight, typename Value>
__device__ inline uint32_t find_cut(Room& room, int n, Wide target, Weight weight, Value value, Wide& rest) {
    const int id = static_cast<int>(threadIdx.x);
    uint32_t prefix = 0;
    for (int round = 0; round < kRounds; ++round) {
        const int shift = (kRounds - 1 - round) * kBits;
        __syncthreads();
        room.bins[id] = 0;
        __syncthreads();
        for (int i = id; i < n; i += kThreads) {
            const uint32_t bits = __float_as_uint(weight(i));
            if (bits >> (shift + kBits) != prefix) continue;
            const Wide own = value(i);
            // From the top: bin 0 holds the largest.
            if (own != 0) atomicAdd(&room.bins[kBins - 1 - (bits >> shift & (kBins - 1))], own);
        }
        if (id == 0) room.answer = kBins;
        scan(room);
        const Wide before = id > 0 ? room.bins[id - 1] : 0;
        if (room.bins[id] >= target && before < target) {
            room.answer = static_cast<Wide>(id);
            room.rest = target - before;
        }
        __syncthreads();
        if (room.answer == kBins) return 0;
        prefix = prefix << kBits | (kBins - 1 - static_cast<uint32_t>(room.answer));
        target = room.rest;
    }
    rest = target;
    return prefix;
}

__device__ inline double random_number(uint64_t seed, uint64_t draw) {
    uint64_t z = seed + 0x9E3779B97F4A7C15u * (draw + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) / 9007199254740992.0;
}

// All counts decay, then that of `id` grows by one.
__device__ inline void count_token(Room& room, Chooser& chooser, Count* counts, const uint32_t* exempt,
                                   uint32_t id) {
    const bool counts_it = (exempt[id / 32] >> id % 32 & 1u) == 0;
    if (threadIdx.x == 0) room.flag = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < chooser.count; i += kThreads) {
        counts[i].value *= chooser.decay;
        if (counts_it && counts[i].id == id) {
            counts[i].value += 1;
            room.flag = 1;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        if (counts_it && room.flag == 0) counts[chooser.count++] = {id, 0.0f, 1.0};
        ++chooser.draw;
    }
    __syncthreads();
}

__device__ inline void best_of(float& value, uint32_t& id, float other, uint32_t other_id) {
    if (other > value || (other == value && other_id < id)) {
        value = other;
        id = other_id;
    }
}

// The most probable token; of equal ones that with the lowest id.
__device__ inline uint32_t find_best(Room& room, const float* logits, int n, float& maximum) {
    float value = -INFINITY;
    uint32_t id = kNotFinite;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
        best_of(value, id, logits[i], static_cast<uint32_t>(i));
    }
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, value, mask);
        best_of(value, id, other, __shfl_xor_sync(kAllLanes, id, mask));
    }
    if (threadIdx.x % kWarp == 0) {
        room.best[threadIdx.x / kWarp] = value;
        room.best_id[threadIdx.x / kWarp] = id;
    }
    __syncthreads();
    for (int i = 0; i < kThreads / kWarp; ++i) best_of(value, id, room.best[i], room.best_id[i]);
    maximum = value;
    return id;
}

// Logits with penalties, and minus infinity for what is banned; false if they are not all finite.
__device__ inline bool adjust(Room& room, const Choosers& all, int slot, const float* logits, float* adjusted) {
    const Chooser& chooser = all.each[slot];
    const uint32_t* banned = all.banned + static_cast<size_t>(slot) * all.words();
    const Count* counts = all.counts + static_cast<size_t>(slot) * all.vocabulary;
    if (threadIdx.x == 0) room.flag = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < all.vocabulary; i += kThreads) {
        const float logit = logits[i];
        if ((__float_as_uint(logit) & 0x7F800000u) == 0x7F800000u) room.flag = 1;
        adjusted[i] = banned[i / 32] >> i % 32 & 1u ? -INFINITY : logit;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < chooser.count; i += kThreads) {
        float& logit = adjusted[counts[i].id];
        const double penalty = chooser.presence + counts[i].value * chooser.frequency;
        logit = static_cast<float>(logit - penalty);
    }
    __syncthreads();
    return room.flag == 0;
}

__global__ void __launch_bounds__(kThreads, 1)
choose_kernel(Choosers all, const float* logits, const int* slots, const uint32_t* fed, uint32_t* ids) {
    __shared__ Room room;
    const int output = static_cast<int>(blockIdx.x);
    const int slot = slots[output];
    const int n = all.vocabulary;
    Chooser& chooser = all.each[slot];
    if (fed != nullptr) {
        count_token(room, chooser, all.counts + static_cast<size_t>(slot) * n,
                    all.exempt + static_cast<size_t>(slot) * all.words(), fed[output]);
    }
    float* adjusted = all.adjusted + static_cast<size_t>(output) * n;
    const bool finite = adjust(room, all, slot, logits + static_cast<size_t>(output) * n, adjusted);
    float maximum;
    const uint32_t best = find_best(room, adjusted, n, maximum);
    if (!finite || chooser.temperature == 0) {
        if (threadIdx.x == 0) ids[output] = finite ? best : kNotFinite;
        return;
    }
    const auto weight = [&](int i) { return expf(adjusted[i] - maximum); };
    Wide rest = 0;
    float least = static_cast<float>(chooser.min_p);
    if (chooser.top_p < 1) {
        Wide total = 0;
        for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) total += units(weight(i));
        __syncthreads();
        room.bins[threadIdx.x] = total;
        scan(room);
        total = room.bins[kThreads - 1];
        const Wide target = static_cast<Wide>(chooser.top_p * static_cast<double>(total));
        const uint32_t cut = find_cut(room, n, target > 0 ? target : 1, weight,
                                      [&](int i) { return units(weight(i)); }, rest);
        least = fmaxf(least, __uint_as_float(cut));
    }
    uint32_t last = 0;        // bits of the smallest weight that stays, where top_k cuts
    Wide equal = ~Wide{0};    // how many of that weight stay
    const auto allowed = [&](float w) { return w >= least && w > 0; };
    if (chooser.top_k > 0 && chooser.top_k < static_cast<uint64_t>(n)) {
        last = find_cut(room, n, chooser.top_k, weight,
                        [&](int i) { return Wide{allowed(weight(i)) ? 1u : 0u}; }, rest);
        if (last != 0) equal = rest;
    }
    // From here on a thread owns neighbouring ids, as ids have an order.
    const int own = (n + kThreads - 1) / kThreads;
    const int begin = static_cast<int>(threadIdx.x) * own < n ? static_cast<int>(threadIdx.x) * own : n;
    const int end = begin + own < n ? begin + own : n;
    Wide ties = 0;
    if (last != 0) {
        for (int i = begin; i < end; ++i) ties += __float_as_uint(weight(i)) == last ? 1u : 0u;
        __syncthreads();
        room.bins[threadIdx.x] = ties;
        scan(room);
        ties = room.bins[threadIdx.x] - ties;  // those before this thread's ids
        __syncthreads();
    }
    const double inverse = 1 / chooser.temperature;
    const float scale = static_cast<float>(inverse < 1e30 ? inverse : 1e30);
    // Calls take(i, units) for each id of this thread that can be chosen, until it returns true.
    const auto visit = [&](auto take) {
        Wide seen = ties;
        for (int i = begin; i < end; ++i) {
            const float w = weight(i);
            if (!allowed(w) || __float_as_uint(w) < last) continue;
            if (last != 0 && __float_as_uint(w) == last && seen++ >= equal) continue;
            const float hot = (adjusted[i] - maximum) * scale;
            if (take(i, units(scale == 1 ? w : expf(hot)))) return;
        }
    };
    Wide mine = 0;
    visit([&](int, Wide weight_units) {
        mine += weight_units;
        return false;
    });
    room.bins[threadIdx.x] = mine;
    if (threadIdx.x == 0) ids[output] = best;
    scan(room);
    const Wide total = room.bins[kThreads - 1];
    const Wide before = room.bins[threadIdx.x] - mine;
    const double random = random_number(chooser.seed, chooser.draw);
    const Wide target = static_cast<Wide>(random * static_cast<double>(total));
    if (mine > 0 && before <= target && target < before + mine) {
        Wide sum = before;
        visit([&](int i, Wide weight_units) {
            sum += weight_units;
            if (sum <= target) return false;
            ids[output] = static_cast<uint32_t>(i);
            return true;
        });
    }
}

}  // namespace

int choose(const Choosers& choosers, const float* logits, const int* slots, const uint32_t* fed,
           int outputs, uint32_t* ids, cudaStream_t stream) {
    return launch(choose_kernel, dim3(static_cast<unsigned>(outputs)), kThreads, stream, choosers, logits,
                  slots, fed, ids);
}

}  // namespace rwkv::cuda
