// The time mixes of RWKV-4, 5 and 6 between their projections.
#pragma once

#include "batch.cuh"
#include "mixing.cuh"

namespace rwkv::cuda {

// Vectors of a layer of RWKV-5 or 6 [A]; the decay of RWKV-6 is its bias before two exponentials.
struct Vectors5 {
    const float *decay, *first;
    NormVectors ln_x;
};

// Projections [tokens, A]; w is null in RWKV-5, the gate where there is none.
struct Projected5 {
    const float *r, *k, *v, *w, *gate;
};

// One block for each head and run; `offset` is that of the layer's sums in the state. The head size is
// one of has_heads_of.
int mix_heads5(const Batch& batch, const Vectors5& vectors, const Projected5& x, int heads, int head_size,
               float eps, size_t offset, Activations y, cudaStream_t stream);

// Vectors of a layer of RWKV-4 [A], logarithms.
struct Vectors4 {
    const float *decay, *first;
};

// Projections [tokens, A], r after its sigmoid. The state holds numerator, denominator and exponent.
struct Projected4 {
    const float *r, *k, *v;
};

int mix_channels4(const Batch& batch, const Vectors4& vectors, const Projected4& x, int channels,
                  size_t offset, Activations y, cudaStream_t stream);

}  // namespace rwkv::cuda
