#include "value.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

// Eight neighbouring weights of a row, as bfloat16.
struct Eight {
    uint32_t pairs[4];
};

__device__ inline Eight load_eight(const Value& v, int row, int column) {
    const size_t at = static_cast<size_t>(row) * v.pitch + column;
    if (v.scales == nullptr) {
        const uint4 w = __ldcs(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(v.weights) + at));
        return {{w.x, w.y, w.z, w.w}};
    }
    const uint2 w = __ldcs(reinterpret_cast<const uint2*>(static_cast<const int8_t*>(v.weights) + at));
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

// Lane (group, place) holds of each tile of 16 hidden channels the rows 2 place, 2 place + 1 and those
// 8 further, and of these the columns 8 group ... 8 group + 7 and those 64 further: tile j of the
// product has column 8 group + j as its row `group`, and the one 64 further as its row `group` + 8.
template <int NT>
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
        Eight near[4], far[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            near[i] = far[i] = {{0, 0, 0, 0}};
            if ((active >> i & 1u) == 0) continue;
            near[i] = load_eight(v, rows[i], column + 8 * group);
            far[i] = load_eight(v, rows[i], column + 64 + 8 * group);
            if (v.scales == nullptr) continue;
            const float scale = v.scales[static_cast<size_t>(rows[i]) * v.groups + blockIdx.x];
#pragma unroll
            for (int n = 0; n < NT; ++n) own[n][i] *= scale;
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            uint32_t high[2], low[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const Split a = split(own[n][2 * half]), b = split(own[n][2 * half + 1]);
                high[half] = a.high | b.high << 16;
                low[half] = a.low | b.low << 16;
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const unsigned selector = j % 2 ? 0x7632 : 0x5410;
                const uint32_t a[4] = {
                    __byte_perm(near[0].pairs[j / 2], near[1].pairs[j / 2], selector),
                    __byte_perm(far[0].pairs[j / 2], far[1].pairs[j / 2], selector),
                    __byte_perm(near[2].pairs[j / 2], near[3].pairs[j / 2], selector),
                    __byte_perm(far[2].pairs[j / 2], far[3].pairs[j / 2], selector)};
                multiply_tiles(c[j][n], a, high[0], high[1]);
                multiply_tiles(c[j][n], a, low[0], low[1]);
            }
        }
    }
    // The warps add one after the other, so that the order of the sum is theirs.
    for (int turn = 0; turn < kValueWarps; ++turn) {
        if (turn == warp) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
#pragma unroll
                for (int n = 0; n < NT; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float& sum = sums[n * kTokens + place + i % 2][8 * group + j + i / 2 * 64];
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

template <int NT>
int launch_sum(const Value& value, const float* x, int tokens, float* parts, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(divide_up(value.width, kValueColumns)),
                    static_cast<unsigned>(value_parts(value.hidden)),
                    static_cast<unsigned>(divide_up(tokens, NT * kTokens)));
    return launch(sum_rows_kernel<NT>, grid, kValueWarps * kWarp, stream, value, x, tokens, parts);
}

}  // namespace

int sum_rows(const Value& value, const float* x, int tokens, float* parts, cudaStream_t stream) {
    if (tokens <= kTokens) return launch_sum<1>(value, x, tokens, parts, stream);
    return launch_sum<2>(value, x, tokens, parts, stream);
}

}  // namespace rwkv::cuda
