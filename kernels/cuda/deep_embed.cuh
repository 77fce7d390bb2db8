// What RWKV-7a adds to the channel mix: every token scales the hidden channels in its own way.
#pragma once

#include "tiles.cuh"

namespace rwkv::cuda {

constexpr int kSide = 32;  // of the matrix of a token

// out [tokens, channels] = x as the other products take it.
int as_activations(const float* x, int tokens, int channels, Activations out, cudaStream_t stream);

// turned [tokens, kSide] = inner [tokens, kSide] * (own + added), both [tokens, kSide, kSide]; the rows of
// `own` begin `stride` floats apart.
int turn(const float* inner, const float* own, int stride, const float* added, int tokens,
         Activations turned, cudaStream_t stream);

// hidden [tokens, channels] *= scale + base [channels].
int scale_hidden(float* hidden, const float* scale, const float* base, int tokens, int channels,
                 cudaStream_t stream);

}  // namespace rwkv::cuda
