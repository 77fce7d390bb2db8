// Products of matrices with activations, several in one launch.
#pragma once

#include <cstdint>

#include "tiles.cuh"

namespace rwkv::cuda {

enum class Finish : uint8_t { none, tanh, sigmoid, silu, squared_relu, add };

// y [tokens, rows] = x [tokens, columns] * weights^T, then `finish`; `add` adds to what y holds.
struct Product {
    const uint4* weights;  // tiles: bfloat16, or with `scales` int8, or with `pairs` of 4 bits
    const float* scales;   // [rows, groups] of q8, or null
    const uint32_t* pairs; // of q4 [row tiles, groups, 16]: scale and in the upper half least, or null
    int rows;
    int tiles;             // of one row of tiles
    int groups;            // of one row
    Activations x;
    float* y;              // [tokens, stride], or null: the result goes into `fragments`
    int stride;
    Activations fragments;
    Finish finish;
};

constexpr int kMaxProducts = 8;

struct Products {
    Product each[kMaxProducts];
    int first[kMaxProducts + 1];  // block of each product; set by `multiply`
    int count;
    int tokens;
};

// Returns a cudaError_t.
int multiply(Products products, cudaStream_t stream);

// Weights in bfloat16 as a file has them, [rows, columns], into zeroed tiles.
int pack(const void* from, int rows, int columns, int first_row, void* to, cudaStream_t stream);

// The same for q8, from `tiles` of `tile_bytes` as rwkv/kernels.h describes them, and their scales
// [rows, groups]; the first row of the first tile is row `first_row` of the matrix. Tiles may begin
// before it and end behind it.
int pack_q8(const void* from, int tiles, int tile_bytes, int first_row, int rows, int columns, void* to,
            float* scales, cudaStream_t stream);

// The same for q4, `tiles` of 16 rows as rwkv/kernels.h describes them, and their scales and leasts.
int pack_q4(const void* from, int tiles, int groups, int first_tile, void* to, uint32_t* pairs,
            cudaStream_t stream);

}  // namespace rwkv::cuda
