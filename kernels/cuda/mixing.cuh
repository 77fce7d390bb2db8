// Layer norms, and the mixing of a token with the one before.
#pragma once

#include "batch.cuh"
#include "tiles.cuh"

namespace rwkv::cuda {

struct NormVectors {
    const float *weight, *bias;
};

constexpr int kMaxMixes = 6;

// out[i] = normal + (previous - normal) * (mixes[i] + shares[i]), where the state at `offset` holds what
// was normal for the token before the first one, and (with `keep`) gets that of the last one.
struct Shift {
    const float* mixes[kMaxMixes];  // [width]
    const float* shares;            // [tokens, count, width], or null
    Activations out[kMaxMixes];
    int count;
    bool keep;
    size_t offset;
};

// What was added to the activations since they were normalized last: the sum of parts [parts, tokens,
// width] in their order, times `gate` [tokens, width] if there is one.
struct Added {
    const float* parts;
    int count;
    const float* gate;
};

// x [tokens, width] = the normalized rows of the embedding.
int embed(const float* rows, NormVectors norm, int tokens, int width, float* x, cudaStream_t stream);

// out = x + added; normal = out normalized; then `shift`. x and out must not be the same.
int normalize_and_shift(const Batch& batch, const float* x, const Added& added, NormVectors norm,
                        const Shift& shift, int width, float* out, float* normal, cudaStream_t stream);

// The same for what is already normalized.
int shift_normal(const Batch& batch, const float* normal, const Shift& shift, int width,
                 cudaStream_t stream);

// The normalized activations of the rows whose logits are wanted, after `added`.
int normalize_outputs(const Batch& batch, const float* x, const Added& added, NormVectors norm, int width,
                      Activations out, cudaStream_t stream);

}  // namespace rwkv::cuda
