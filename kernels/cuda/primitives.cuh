// What all kernels are made of: bfloat16, sums over threads, and the product of two small tiles.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rwkv::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarp = 32;

__device__ inline float widen(uint32_t bf16) { return __uint_as_float(bf16 << 16); }

// To the nearest bfloat16, ties to even; NaN stays NaN.
__device__ inline uint32_t narrow(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0u;
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

// x = high + low to 2^-17 of |x|: two bfloat16 carry an activation through the tensor cores.
struct Split {
    uint32_t high, low;
};

__device__ inline Split split(float x) {
    const uint32_t high = narrow(x);
    return {high, narrow(x - widen(high))};
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
    return x;
}

// The sum over all threads of a block, for all of them; `room` holds a float for each warp, and is
// free again after the next barrier.
__device__ inline float block_sum(float x, float* room) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    x = warp_sum(x);
    if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; ++i) sum += room[i];
    return sum;
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// c [16, 8] += a [16, 16] * b [16, 8] for the whole warp, in the fragments of mma.m16n8k16, where
// there are no tensor cores for bfloat16. Slow; every lane fetches the rows and columns it needs.
__device__ inline void multiply_by_shuffles(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int column = lane % 4 * 2;
#pragma unroll 1
    for (int source = 0; source < 4; ++source) {
        uint32_t left[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) left[i] = __shfl_sync(kAllLanes, a[i], lane / 4 * 4 + source);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int from = (column + n) * 4 + source;
            const uint32_t right[2] = {__shfl_sync(kAllLanes, b0, from),
                                       __shfl_sync(kAllLanes, b1, from)};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const uint32_t weights = left[half + 2 * k];
                    float& sum = c[half * 2 + n];
                    sum = __fmaf_rn(widen(weights & 0xFFFFu), widen(right[k] & 0xFFFFu), sum);
                    sum = __fmaf_rn(widen(weights >> 16), widen(right[k] >> 16), sum);
                }
            }
        }
    }
}

__device__ inline void multiply_tiles(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(RWKV_EMULATED_GPU)
    emulation::mma_16816(c, a, b0, b1);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    multiply_by_shuffles(c, a, b0, b1);
#else
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace rwkv::cuda
