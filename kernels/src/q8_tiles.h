// Products with q8 weights. The lanes of a vector are rows of a tile, so that nothing is summed over
// lanes. The including file defines, for its instruction set:
//   kLanes; kBytes, of a rounded activation; kTogether, how many vectors of rows share activations (1,
//   or 2 where a vector is a tile); kTile, tokens of a tile; Floats; Ints; zero_floats, load_floats,
//   store_floats, broadcast_float, broadcast_int (both from memory), fmadd, to_floats;
//   Block, the weights of four columns, and load_block(p); Numbers, four activations, and
//   load_numbers(p); dot(sums, block, numbers), sums plus the products.
// Weights are 128 more than they stand for; sums begin with what makes good for that.
#pragma once

#include "rounding.h"

namespace rwkv {
namespace {

constexpr size_t kBlock = 4 * kTileRows;                // bytes of four columns of a tile
constexpr size_t kScales = kTileRows * sizeof(float);   // bytes
constexpr size_t kRecord = kScales + kGroup * kTileRows;
constexpr size_t kSteps = kFine / 4;                    // blocks of a fine group
constexpr size_t kChunk = 4 * kGroup;                   // columns that stay in the first-level cache
constexpr size_t kBatch = 132;                            // tokens whose sums are held

// Rounded activations of some tokens, `stride` bytes apart, from a column on.
struct Inputs {
    const unsigned char* numbers;
    const unsigned char* units;
    const unsigned char* starts;
    size_t stride;
};

// kR times kLanes rows of weights: where they begin, and how far apart they and their sums are.
struct Rows {
    const unsigned char* weights;
    size_t apart;  // bytes
    float* sums;   // [kT, kLanes]
    size_t sums_apart;
};

// sums [kR][kT, kLanes] += the products of `fines` fine groups of rows with kT tokens. kOnce: the
// weights come from memory, and what follows is asked for.
template <int kR, int kT, bool kOnce>
void add_tile(const Rows& rows, size_t fines, const Inputs& x) {
    // Three tokens to a pointer: the others are reached by multiples of the stride.
    constexpr int kPointers = (kT + 2) / 3;
    const size_t apart = rows.apart;
    const size_t ahead = kR > 1 ? kR * apart : kAhead;
    const size_t stride = x.stride;
    const unsigned char* tile = rows.weights;
    const unsigned char* units = x.units;
    const unsigned char* starts = x.starts;
    const unsigned char* data[kPointers];
    for (int i = 0; i < kPointers; ++i) data[i] = x.numbers + 3 * i * stride;
    while (fines > 0) {
        const size_t own = fines < kFines ? fines : kFines;
        Floats scales[kR];
        Floats parts[kR][kT];
#pragma GCC unroll 2
        for (int r = 0; r < kR; ++r) {
            if (kOnce) prefetch(tile + r * apart + ahead);
            scales[r] = load_floats(reinterpret_cast<const float*>(tile + r * apart));
#pragma GCC unroll 12
            for (int t = 0; t < kT; ++t) parts[r][t] = zero_floats();
        }
        tile += kScales;
        for (size_t fine = 0; fine < own; ++fine) {
            Ints dots[kR][kT];
#pragma GCC unroll 12
            for (int t = 0; t < kT; ++t) {
                const Ints start = broadcast_int(starts + t * stride);
#pragma GCC unroll 2
                for (int r = 0; r < kR; ++r) dots[r][t] = start;
            }
#pragma GCC unroll 8
            for (size_t step = 0; step < kSteps; ++step) {
                Block weights[kR];
#pragma GCC unroll 2
                for (int r = 0; r < kR; ++r) {
                    const unsigned char* block = tile + r * apart + step * kBlock;
                    if (kOnce) prefetch(block + ahead);
                    weights[r] = load_block(block);
                }
#pragma GCC unroll 12
                for (int t = 0; t < kT; ++t) {
                    const Numbers numbers =
                        load_numbers(data[t / 3] + t % 3 * stride + 4 * kBytes * step);
#pragma GCC unroll 2
                    for (int r = 0; r < kR; ++r) {
                        dots[r][t] = dot(dots[r][t], weights[r], numbers);
                    }
                }
            }
#pragma GCC unroll 12
            for (int t = 0; t < kT; ++t) {
                const Floats unit = broadcast_float(units + t * stride);
#pragma GCC unroll 2
                for (int r = 0; r < kR; ++r) {
                    parts[r][t] = fmadd(to_floats(dots[r][t]), unit, parts[r][t]);
                }
            }
            tile += kSteps * kBlock;
            units += 4;
            starts += 4;
            for (int i = 0; i < kPointers; ++i) data[i] += kFine * kBytes;
        }
#pragma GCC unroll 2
        for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 12
            for (int t = 0; t < kT; ++t) {
                float* sum = rows.sums + r * rows.sums_apart + t * kLanes;
                store_floats(sum, fmadd(parts[r][t], scales[r], load_floats(sum)));
            }
        }
        fines -= own;
    }
}

// A number that is known to the compiler.
template <int kValue>
struct Tile {
    static constexpr int kT = kValue;
};

// Calls add(Tile<left>), for 1 <= left <= kMost.
template <int kMost, class Add>
void for_tile(size_t left, const Add& add) {
    if constexpr (kMost > 1) {
        if (left < kMost) return for_tile<kMost - 1>(left, add);
    }
    add(Tile<kMost>());
}

// The same for any number of tokens.
template <int kR, bool kOnce>
void add_tiles(const Rows& rows, size_t fines, const Inputs& x, size_t tokens) {
    for (size_t t = 0; t < tokens; t += kTile) {
        const size_t left = tokens - t < kTile ? tokens - t : kTile;
        const size_t at = t * x.stride;
        const Inputs inputs{x.numbers + at, x.units + at, x.starts + at, x.stride};
        const Rows own{rows.weights, rows.apart, rows.sums + t * kLanes, rows.sums_apart};
        const auto add = [&](auto size) {
            add_tile<kR, decltype(size)::kT, kOnce>(own, fines, inputs);
        };
        for_tile<kTile>(left, add);
    }
}

// Over all columns of a matrix; `x` are rounded activations.
template <int kR>
void add_rows(const Matrix& w, const Rows& rows, const unsigned char* x, size_t tokens) {
    const RoundedQ8 parts(w.columns);
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    if (tokens <= kTile) {
        const Inputs inputs{x + parts.numbers, x, x + parts.sums, stride};
        return add_tiles<kR, true>(rows, (w.columns + kFine - 1) / kFine, inputs, tokens);
    }
    for (size_t column = 0; column < w.columns; column += kChunk) {
        const size_t left = w.columns - column < kChunk ? w.columns - column : kChunk;
        const size_t fine = column / kFine * 4;
        const Inputs inputs{x + parts.numbers + column * kBytes, x + fine, x + parts.sums + fine,
                            stride};
        const Rows own{rows.weights + tile_bytes_q8(column), rows.apart, rows.sums, rows.sums_apart};
        add_tiles<kR, false>(own, (left + kFine - 1) / kFine, inputs, tokens);
    }
}

inline void multiply_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x,
                        size_t tokens, float* y, size_t y_stride) {
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    alignas(64) float sums[kTogether][kBatch * kLanes];
    for (size_t begin = 0; begin < tokens; begin += kBatch) {
        const size_t batch = tokens - begin < kBatch ? tokens - begin : kBatch;
        const unsigned char* own = x + begin * stride;
        for (size_t row = first / kLanes * kLanes; row < last;) {
            // One token is one stream, which the hardware follows.
            const bool together = batch > 1 && last - row > (kTogether - 1) * kLanes;
            const size_t count = together ? kTogether : 1;
            for (size_t r = 0; r < count; ++r) {
                for (size_t i = 0; i < batch * kLanes; ++i) sums[r][i] = 0;
            }
            const Rows rows{row_of(w, row) + row % kTileRows * 4, tile_bytes_q8(w.columns), sums[0],
                            kBatch * kLanes};
            if (together) {
                add_rows<kTogether>(w, rows, own, batch);
            } else {
                add_rows<1>(w, rows, own, batch);
            }
            for (size_t r = 0; r < count; ++r, row += kLanes) {
                const size_t from = row < first ? first - row : 0;
                const size_t to = last - row < kLanes ? last - row : kLanes;
                for (size_t t = 0; t < batch; ++t) {
                    float* results = y + (begin + t) * y_stride + row;
                    for (size_t lane = from; lane < to; ++lane) {
                        results[lane] = sums[r][t * kLanes + lane];
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace rwkv
