// The time mix of RWKV-7 between its projections.
#pragma once

#include "batch.cuh"
#include "mixing.cuh"

namespace rwkv::cuda {

// Vectors of a layer [width]; v0 is null in the first one.
struct Vectors7 {
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k;
    NormVectors ln_x;
};

// Projections [tokens, width] before their biases; the value of layer 0 is kept in `first_v`.
struct Projected7 {
    const float *r, *k, *v, *w, *a, *share, *gate;
    float* first_v;
};

// Head sizes that there are kernels for.
constexpr bool has_heads_of(size_t size) {
    return size == 16 || size == 32 || size == 64 || size == 128;
}

// One block for each head and run; `offset` is that of the layer's sums in the state.
int mix_heads7(const Batch& batch, const Vectors7& vectors, const Projected7& x, int heads, int head_size,
               float eps, size_t offset, Activations y, cudaStream_t stream);

}  // namespace rwkv::cuda
