// ffn.value: the sum of its rows, each times its hidden channel. Rows whose channel is zero for all
// tokens at hand are not read.
#pragma once

#include "tiles.cuh"

namespace rwkv::cuda {

constexpr int kValueColumns = 128;  // of one warp; also those that share a scale of q8
constexpr int kValueRows = 128;     // of one warp
constexpr int kValueWarps = 8;      // whose rows make one part

// Parts of the sum over hidden channels.
inline int value_parts(int hidden) { return divide_up(hidden, kValueRows * kValueWarps); }

struct Value {
    const void* weights;  // rows `pitch` bytes apart: bfloat16, or with `scales` int8, zeros beyond the width
    const float* scales;  // [hidden, groups] of q8, or null
    bool packed;          // the rows are those of q4_rows in rwkv/kernels.h
    int hidden, width;
    int pitch, groups;    // groups of kValueColumns in a row
};

// parts [value_parts, tokens, width] of x [tokens, hidden] * weights.
int sum_rows(const Value& value, const float* x, int tokens, float* parts, cudaStream_t stream);

}  // namespace rwkv::cuda
