// Products with q8 weights. Blocks of weights are laid out anew so that the lanes of a vector are
// different sums, and used for all tokens. The including file defines, for its instruction set:
//   kLanes; kTogether, the numbers of one sum in a lane; kTile, tokens of a tile; Floats; Ints;
//   zero_floats, load_floats, store_floats, broadcast (of a float or an int in memory), fmadd,
//   load_ints, to_floats; dot(sums, weights, numbers);
//   start_sum(p), the int sum to begin with, from the -128 times sum of activations at p;
//   pack_rows(w, row, valid, column, count, to): panel of columns [column, column + count <= kGroup)
//   of kLanes rows from `row`, those from `valid` on being anything.
#pragma once

#include "rounding.h"

namespace rwkv {
namespace {

constexpr size_t kBytes = 4 / kTogether;             // of a rounded activation
constexpr size_t kSteps = kFine / kTogether;         // products of a fine group
constexpr size_t kPanel = kGroup / kTogether * kLanes;  // ints of the weights of a group
constexpr size_t kChunk = 4;                         // groups of columns that are laid out at once
constexpr size_t kBatch = kTile * (132 / kTile);     // tokens whose sums are held

// sums [kT, kLanes] += the products of `groups` groups of weights with activations of kT tokens.
// `numbers`, `units` and `starts` are those of the first token and group.
template <int kT>
void add_tile(const int32_t* panel, const float* scales, size_t groups, const unsigned char* numbers,
              const unsigned char* units, const unsigned char* starts, size_t stride, float* sums) {
    // Three tokens to a pointer: the others are reached by multiples of the stride.
    constexpr int kPointers = (kT + 2) / 3;
    const unsigned char* data[kPointers];
    for (int i = 0; i < kPointers; ++i) data[i] = numbers + 3 * i * stride;
    for (size_t group = 0; group < groups; ++group) {
        Floats parts[kT];
#pragma GCC unroll 12
        for (int t = 0; t < kT; ++t) parts[t] = zero_floats();
        for (size_t fine = 0; fine < kFines; ++fine) {
            Ints dots[kT];
#pragma GCC unroll 12
            for (int t = 0; t < kT; ++t) dots[t] = start_sum(starts + t * stride);
#pragma GCC unroll 16
            for (size_t step = 0; step < kSteps; ++step) {
                const Ints weights = load_ints(panel + step * kLanes);
#pragma GCC unroll 12
                for (int t = 0; t < kT; ++t) {
                    dots[t] = dot(dots[t], weights,
                                  broadcast_int(data[t / 3] + t % 3 * stride + 4 * step));
                }
            }
#pragma GCC unroll 12
            for (int t = 0; t < kT; ++t) {
                parts[t] = fmadd(to_floats(dots[t]), broadcast_float(units + t * stride), parts[t]);
            }
            panel += kSteps * kLanes;
            units += 4;
            starts += 4;
            for (int i = 0; i < kPointers; ++i) data[i] += kFine * kBytes;
        }
        const Floats scale = load_floats(scales + group * kLanes);
#pragma GCC unroll 12
        for (int t = 0; t < kT; ++t) {
            store_floats(sums + t * kLanes, fmadd(parts[t], scale, load_floats(sums + t * kLanes)));
        }
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
inline void add_tiles(const int32_t* panel, const float* scales, size_t groups,
                      const unsigned char* numbers, const unsigned char* units,
                      const unsigned char* starts, size_t stride, size_t tokens, float* sums) {
    for (size_t t = 0; t < tokens; t += kTile) {
        const size_t left = tokens - t < kTile ? tokens - t : kTile;
        const auto add = [&](auto tile) {
            add_tile<decltype(tile)::kT>(panel, scales, groups, numbers + t * stride,
                                         units + t * stride, starts + t * stride, stride,
                                         sums + t * kLanes);
        };
        for_tile<kTile>(left, add);
    }
}

inline void multiply_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x,
                        size_t tokens, float* y, size_t y_stride) {
    const RoundedQ8 parts(w.columns);
    const size_t stride = rounded_bytes(Weights::q8, w.columns);
    const size_t groups = groups_of(w.columns);
    alignas(64) int32_t panel[kChunk * kPanel];
    alignas(64) float scales[kChunk * kLanes] = {};
    alignas(64) float sums[kBatch * kLanes];
    for (size_t begin = 0; begin < tokens; begin += kBatch) {
        const size_t batch = tokens - begin < kBatch ? tokens - begin : kBatch;
        const unsigned char* own = x + begin * stride;
        for (size_t row = first; row < last; row += kLanes) {
            const size_t valid = last - row < kLanes ? last - row : kLanes;
            for (size_t i = 0; i < batch * kLanes; ++i) sums[i] = 0;
            for (size_t start = 0; start < groups; start += kChunk) {
                const size_t count = groups - start < kChunk ? groups - start : kChunk;
                for (size_t group = 0; group < count; ++group) {
                    const size_t column = (start + group) * kGroup;
                    const size_t left = w.columns - column < kGroup ? w.columns - column : kGroup;
                    pack_rows(w, row, valid, column, left, panel + group * kPanel);
                    for (size_t lane = 0; lane < valid; ++lane) {
                        scales[group * kLanes + lane] =
                            load_scale(scales_of(w, row + lane), start + group);
                    }
                }
                const size_t fine = start * kFines * 4;
                add_tiles(panel, scales, count, own + parts.numbers + start * kGroup * kBytes,
                          own + fine, own + parts.sums + fine, stride, batch, sums);
            }
            for (size_t t = 0; t < batch; ++t) {
                float* to = y + (begin + t) * y_stride + row;
                for (size_t lane = 0; lane < valid; ++lane) to[lane] = sums[t * kLanes + lane];
            }
        }
    }
}

}  // namespace
}  // namespace rwkv
