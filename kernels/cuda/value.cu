#include "value.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

// Eight neighbouring weights of a row, as bfloat16.
struct Eight {
    uint32_t pairs[4];
};

__device__ inline Eight load_eight(const Value& v, int row, int column) {
    const auto* own = static_cast<const uint8_t*>(v.weights) + static_cast<size_t>(row) * v.pitch;
    if (v.scales == nullptr) {
        const uint4 w = __ldcs(reinterpret_cast<const uint4*>(own + 2 * column));
        return {{w.x, w.y, w.z, w.w}};
    }
    const uint2 w = __ldcs(reinterpret_cast<const uint2*>(own + column));
    Eight result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t two = (i < 2 ? w.x : w.y) >> (i % 2 * 16);
        const auto number = [](uint32_t byte) {
            return narrow(static_cast<float>(static_cast<int8_t>(byte & 0xFFu)));
        };
        result.pairs[i] = number(two) | number(two >> 8) << 16;
    }
    return result;
}

// Fragments of a tile of activations: high and low halves of the four that a lane holds.
struct Halves {
    uint32_t high[2], low[2];
};

__device__ inline Halves halves_of(const float (&x)[4]) {
    Halves result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Split a = split(x[2 * half]), b = split(x[2 * half + 1]);
        result.high[half] = a.high | b.high << 16;
        result.low[half] = a.low | b.low << 16;
    }
    return result;
}

__device__ inline void multiply_halves(float (&c)[4], const uint32_t (&a)[4], const Halves& x) {
    multiply_tiles(c, a, x.high[0], x.high[1]);
    multiply_tiles(c, a, x.low[0], x.low[1]);
}

// Adds the rows of a tile that are active; `x` are the hidden channels, and change for q8.
template <int NT>
__device__ inline void add_rows(const Value& v, const int (&rows)[4], unsigned active, int column, int group,
                                float (&x)[NT][4], float (&c)[8][NT][4]) {
    Eight near[4], far[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        near[i] = far[i] = {{0, 0, 0, 0}};
        if ((active >> i & 1u) == 0) continue;
        near[i] = load_eight(v, rows[i], column + 8 * group);
        far[i] = load_eight(v, rows[i], column + 64 + 8 * group);
        if (v.scales == nullptr) continue;
        const float scale = v.scales[static_cast<size_t>(rows[i]) * v.groups + column / kValueColumns];
#pragma unroll
        for (int n = 0; n < NT; ++n) x[n][i] *= scale;
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
        const Halves by = halves_of(x[n]);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const unsigned selector = j % 2 ? 0x7632 : 0x5410;
            const uint32_t a[4] = {
                __byte_perm(near[0].pairs[j / 2], near[1].pairs[j / 2], selector),
                __byte_perm(far[0].pairs[j / 2], far[1].pairs[j / 2], selector),
                __byte_perm(near[2].pairs[j / 2], near[3].pairs[j / 2], selector),
                __byte_perm(far[2].pairs[j / 2], far[3].pairs[j / 2], selector)};
            multiply_halves(c[j][n], a, by);
        }
    }
}

constexpr int kRecord = 8 + kValueColumns / 2;  // bytes of q4 for kValueColumns
constexpr uint32_t kOnes = 0x3F803F80u;         // 1 and 1 in bfloat16
constexpr uint32_t kOffsets = 0x43004300u;      // 128 and 128: a number below 128 fits into their bits
constexpr float kOffset = 128.0f;

// The sums of a warp over packed rows. Of each row a lane holds the two integers 2 group and 2 group +
// 1, whose bits 4 j ... are the columns 16 j + 2 group and the next: those are the rows `group` and
// `group` + 8 of tile j. Scales and leasts differ between the first 64 columns and the others: each half
// has activations times its scale, and sums of those, which take away what the numbers are too large.
template <int NT>
struct PackedSums {
    float scaled[2][NT][4], least[2][NT][4];

    __device__ void clear() {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) scaled[side][n][i] = least[side][n][i] = 0;
            }
        }
    }

    __device__ void add(const Value& v, const int (&rows)[4], unsigned active, int block, int group,
                        const float (&x)[NT][4], float (&c)[8][NT][4]) {
        const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
        uint2 heads[4], numbers[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            heads[i] = numbers[i] = make_uint2(0, 0);
            if ((active >> i & 1u) == 0) continue;
            const auto* record = static_cast<const uint8_t*>(v.weights) +
                                 static_cast<size_t>(rows[i]) * v.pitch + block * kRecord;
            heads[i] = __ldg(reinterpret_cast<const uint2*>(record));
            numbers[i] = __ldcs(reinterpret_cast<const uint2*>(record + 8) + group);
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float by_scale[4], by_least[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint32_t head = side == 0 ? heads[i].x : heads[i].y;
                    by_scale[i] = x[n][i] * widen(head & 0xFFFFu);
                    by_least[i] = x[n][i] * widen(head >> 16);
                }
                const Halves by = halves_of(by_scale);
                multiply_halves(scaled[side][n], ones, by);
                multiply_halves(least[side][n], ones, halves_of(by_least));
#pragma unroll
                for (int j = 4 * side; j < 4 * side + 4; ++j) {
                    const auto pair = [&](uint32_t low, uint32_t high) {
                        return (low >> 4 * j & 15u) | (high >> 4 * j & 15u) << 16 | kOffsets;
                    };
                    const uint32_t a[4] = {
                        pair(numbers[0].x, numbers[1].x), pair(numbers[0].y, numbers[1].y),
                        pair(numbers[2].x, numbers[3].x), pair(numbers[2].y, numbers[3].y)};
                    multiply_halves(c[j][n], a, by);
                }
            }
        }
    }

    __device__ void finish(float (&c)[8][NT][4]) const {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    c[j][n][i] = __fmaf_rn(-kOffset, scaled[j / 4][n][i], c[j][n][i]) + least[j / 4][n][i];
                }
            }
        }
    }
};

// Lane (group, place) holds of each tile of 16 hidden channels the rows 2 place, 2 place + 1 and those
// 8 further, and of these the columns 8 group ... 8 group + 7 and those 64 further: tile j of the
// product has column 8 group + j as its row `group`, and the one 64 further as its row `group` + 8.
template <int NT, bool kPacked>
__global__ void __launch_bounds__(kValueWarps* kWarp, 1)
sum_rows_kernel(Value v, const float* x, int tokens, float* parts) {
    __shared__ float sums[NT * kTokens][kValueColumns];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int group = lane / 4, place = lane % 4 * 2;
    const int column = static_cast<int>(blockIdx.x) * kValueColumns;
    const int part = static_cast<int>(blockIdx.y);
    const int first_token = static_cast<int>(blockIdx.z) * NT * kTokens;
    const int first_row = (part * kValueWarps + warp) * kValueRows;
    float c[8][NT][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) c[j][n][i] = 0;
        }
    }
    PackedSums<NT> packed;
    if (kPacked) packed.clear();
    for (int tile = first_row; tile < first_row + kValueRows && tile < v.hidden; tile += kTile) {
        float own[NT][4];
        unsigned active = 0;
        int rows[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows[i] = tile + place + i % 2 + i / 2 * 8;
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                const int token = first_token + n * kTokens + group;
                own[n][i] = rows[i] < v.hidden && token < tokens
                    ? x[static_cast<size_t>(token) * v.hidden + rows[i]] : 0.0f;
                active |= (own[n][i] != 0 ? 1u : 0u) << i;
            }
        }
        // The rows that any token of the warp needs.
#pragma unroll
        for (int mask = 4; mask < kWarp; mask *= 2) active |= __shfl_xor_sync(kAllLanes, active, mask);
        if constexpr (kPacked) {
            packed.add(v, rows, active, static_cast<int>(blockIdx.x), group, own, c);
        } else {
            add_rows<NT>(v, rows, active, column, group, own, c);
        }
    }
    if (kPacked) packed.finish(c);
    // The warps add one after the other, so that the order of the sum is theirs.
    for (int turn = 0; turn < kValueWarps; ++turn) {
        if (turn == warp) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
#pragma unroll
                for (int n = 0; n < NT; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int own = kPacked ? 16 * j + 2 * group + i / 2 : 8 * group + j + i / 2 * 64;
                        float& sum = sums[n * kTokens + place + i % 2][own];
                        sum = turn == 0 ? c[j][n][i] : sum + c[j][n][i];
                    }
                }
            }
        }
        __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < NT * kTokens * kValueColumns;
         i += kValueWarps * kWarp) {
        const int token = first_token + i / kValueColumns;
        const int own_column = column + i % kValueColumns;
        if (token >= tokens || own_column >= v.width) continue;
        parts[(static_cast<size_t>(part) * tokens + token) * v.width + own_column] =
            sums[i / kValueColumns][i % kValueColumns];
    }
}

template <int NT, bool kPacked>
int launch_sum(const Value& value, const float* x, int tokens, float* parts, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(divide_up(value.width, kValueColumns)),
                    static_cast<unsigned>(value_parts(value.hidden)),
                    static_cast<unsigned>(divide_up(tokens, NT * kTokens)));
    return launch(sum_rows_kernel<NT, kPacked>, grid, kValueWarps * kWarp, stream, value, x, tokens, parts);
}

}  // namespace

int sum_rows(const Value& value, const float* x, int tokens, float* parts, cudaStream_t stream) {
    if (tokens <= kTokens) {
        return value.packed ? launch_sum<1, true>(value, x, tokens, parts, stream)
                            : launch_sum<1, false>(value, x, tokens, parts, stream);
    }
    return value.packed ? launch_sum<2, true>(value, x, tokens, parts, stream)
                        : launch_sum<2, false>(value, x, tokens, parts, stream);
}

}  // namespace rwkv::cuda
