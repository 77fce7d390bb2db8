// How matrices and activations lie on the device: in the order in which lanes multiply them.
//
// A matrix is cut into tiles of 16 rows and 16 columns, filled up with zeros. The 8 weights of a tile
// that a lane needs lie together, and the 32 lanes one after the other, so a warp reads a tile as one
// piece of memory: 512 bytes in bfloat16; in q8 two neighbouring tiles make one piece of 512 bytes, in
// q4 four, which are the columns that share scale and least.
// Tiles of the same rows follow each other.
//
// Activations are cut into tiles of 8 tokens and 16 channels. Each is two bfloat16 (see Split), the 4
// high and the 4 low ones that a lane needs lie together: 512 bytes for a tile.
#pragma once

#include <cstdint>

#include "primitives.cuh"

namespace rwkv::cuda {

constexpr int kTile = 16;        // rows of a tile of weights, and columns
constexpr int kTokens = 8;       // tokens of a tile of activations
constexpr int kGroupTiles = 8;   // tiles that share the scales of q8, as kGroup columns do
constexpr int kGroupTilesQ4 = 4;
constexpr int kSlices = 8;       // a sum over columns is the sum of at most this many parts, in order

__host__ __device__ inline int divide_up(int a, int b) { return (a + b - 1) / b; }

// Tiles of one row of tiles: whole pieces of any type.
__host__ __device__ inline int tiles_of(int columns) {
    return divide_up(columns, kGroupTilesQ4 * kTile) * kGroupTilesQ4;
}

// Tiles of one part of a sum over columns. They follow from the matrix alone, so the order of a sum
// is the same for any number of tokens.
__host__ __device__ inline int slice_of(int tiles) {
    return divide_up(divide_up(tiles, kSlices), kGroupTiles) * kGroupTiles;
}

// The place of a weight, in units of its size; `bytes` of one weight are 1 or 2.
__host__ __device__ inline size_t weight_place(int row, int column, int tiles, int bytes) {
    const int lane = row % 8 * 4 + column % 8 / 2;
    const int inside = (row % kTile / 8 + column % kTile / 8 * 2) * 2 + column % 2;
    const size_t tile = static_cast<size_t>(row / kTile) * tiles + column / kTile;
    if (bytes == 2) return (tile * kWarp + lane) * 8 + inside;
    return (tile / 2 * kWarp + lane) * 16 + tile % 2 * 8 + inside;
}

// Activations [tokens, channels]; uint16 elements, zeros where no channel is.
struct Activations {
    uint16_t* data;
    int tiles;  // of one row of tiles

    __device__ void put(int token, int channel, float x) const {
        const int lane = token % kTokens * 4 + channel % 8 / 2;
        const size_t tile = static_cast<size_t>(token / kTokens) * tiles + channel / kTile;
        uint16_t* to = data + (tile * kWarp + lane) * 8 + channel % kTile / 8 * 2 + channel % 2;
        const Split parts = split(x);
        to[0] = static_cast<uint16_t>(parts.high);
        to[4] = static_cast<uint16_t>(parts.low);
    }
};

}  // namespace rwkv::cuda
