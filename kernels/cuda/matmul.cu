#include "matmul.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kWarps = 8;

__device__ inline float finished(Finish finish, float x) {
    switch (finish) {
        case Finish::tanh: return tanhf(x);
        case Finish::sigmoid: return sigmoid(x);
        case Finish::silu: return x * sigmoid(x);
        // A NaN passes, so that a broken model is noticed.
        case Finish::squared_relu: return x < 0 ? 0.0f : x * x;
        default: return x;
    }
}

__device__ inline void put(const Product& p, int token, int row, float x) {
    const float value = finished(p.finish, x);
    if (p.y == nullptr) {
        p.fragments.put(token, row, value);
    } else if (p.finish == Finish::add) {
        p.y[static_cast<size_t>(token) * p.stride + row] += value;
    } else {
        p.y[static_cast<size_t>(token) * p.stride + row] = value;
    }
}

// Four int8 in a word as four bfloat16, exactly: through a float32 that holds 2^23 and the number.
__device__ inline uint2 widen_q8(uint32_t four) {
    const uint32_t biased = four ^ 0x80808080u;
    const auto number = [&](unsigned selector) {
        return __float_as_uint(__uint_as_float(__byte_perm(biased, 0x4B000000u, selector)) - 8388736.0f);
    };
    return make_uint2(__byte_perm(number(0x7440), number(0x7441), 0x7632),
                      __byte_perm(number(0x7442), number(0x7443), 0x7632));
}

// Lane's part of the tile of activations; 0 where no token is.
__device__ inline uint4 load_tokens(const Activations& x, int tile, int place, bool there) {
    if (!there) return make_uint4(0, 0, 0, 0);
    const size_t at = (static_cast<size_t>(tile) * x.tiles + place) * kWarp + threadIdx.x % kWarp;
    return __ldg(reinterpret_cast<const uint4*>(x.data) + at);
}

// Weights that are read once must not push others out of the caches.
template <bool kOnce>
__device__ inline uint4 load_weights(const uint4* from) {
    return kOnce ? __ldcs(from) : __ldg(from);
}

// The product of MT rows of tiles with NT tiles of tokens, over the tiles [begin, end) of columns.
template <int MT, int NT>
struct Tile {
    // Steps in flight; more would not fit into the registers.
    static constexpr int kAhead = MT * NT >= 8 ? 1 : 4;

    float sums[MT][NT][4];

    __device__ void clear() {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[m][n][i] = 0;
            }
        }
    }

    __device__ void add(const uint4 (&weights)[MT], const uint4 (&x)[NT]) {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const uint32_t a[4] = {weights[m].x, weights[m].y, weights[m].z, weights[m].w};
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                multiply_tiles(sums[m][n], a, x[n].x, x[n].y);
                multiply_tiles(sums[m][n], a, x[n].z, x[n].w);
            }
        }
    }

    template <bool kOnce>
    __device__ void run(const Product& p, int row_tile, int token_tile, int tokens, int begin, int end) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        const int row_tiles = divide_up(p.rows, kTile);
        bool there[NT];
#pragma unroll
        for (int n = 0; n < NT; ++n) there[n] = (token_tile + n) * kTokens + lane / 4 < tokens;
        const uint4* rows[MT];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const int own = row_tile + m < row_tiles ? row_tile + m : row_tiles - 1;
            rows[m] = p.weights + static_cast<size_t>(own) * (p.scales ? p.tiles / 2 : p.tiles) * kWarp + lane;
        }
        if (p.scales == nullptr) {
#pragma unroll kAhead
            for (int k = begin; k < end; ++k) {
                uint4 weights[MT], x[NT];
#pragma unroll
                for (int m = 0; m < MT; ++m) weights[m] = load_weights<kOnce>(rows[m] + static_cast<size_t>(k) * kWarp);
#pragma unroll
                for (int n = 0; n < NT; ++n) x[n] = load_tokens(p.x, token_tile + n, k, there[n]);
                add(weights, x);
            }
            return;
        }
        for (int group = begin; group < end; group += kGroupTiles) {
            Tile part;
            part.clear();
            const int last = group + kGroupTiles < end ? group + kGroupTiles : end;
#pragma unroll(kAhead > 1 ? 2 : 1)
            for (int k = group; k < last; k += 2) {
                uint4 packed[MT];
#pragma unroll
                for (int m = 0; m < MT; ++m) packed[m] = load_weights<kOnce>(rows[m] + static_cast<size_t>(k / 2) * kWarp);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint4 weights[MT], x[NT];
#pragma unroll
                    for (int m = 0; m < MT; ++m) {
                        const uint2 low = widen_q8(half ? packed[m].z : packed[m].x);
                        const uint2 high = widen_q8(half ? packed[m].w : packed[m].y);
                        weights[m] = make_uint4(low.x, low.y, high.x, high.y);
                    }
#pragma unroll
                    for (int n = 0; n < NT; ++n) x[n] = load_tokens(p.x, token_tile + n, k + half, there[n]);
                    part.add(weights, x);
                }
            }
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = (row_tile + m) * kTile + lane / 4 + 8 * half;
                    const float scale = row < p.rows
                        ? p.scales[static_cast<size_t>(row) * p.groups + group / kGroupTiles] : 0.0f;
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; ++i) {
                            sums[m][n][i] = __fmaf_rn(scale, part.sums[m][n][i], sums[m][n][i]);
                        }
                    }
                }
            }
        }
    }
};

__device__ inline int product_of(const Products& all, int block) {
    int index = 0;
    while (block >= all.first[index + 1]) ++index;
    return index;
}

// Warps of one block for the same rows, each with a slice of the columns.
__host__ __device__ inline int warps_of(int tiles) {
    const int slices = divide_up(tiles, slice_of(tiles));
    return slices <= 1 ? 1 : slices <= 2 ? 2 : slices <= 4 ? 4 : 8;
}

// For few tokens. A warp takes one slice of the columns of MT * 16 rows, so that all of the machine
// reads weights; the slices are added in their order.
template <int MT, int NT>
__global__ void __launch_bounds__(kWarps* kWarp, MT* NT == 1 ? 4 : 1) multiply_narrow(Products all) {
    __shared__ float parts[kWarps][NT * kTokens][MT * kTile + 1];
    const int index = product_of(all, static_cast<int>(blockIdx.x));
    const Product& p = all.each[index];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int sharing = warps_of(p.tiles);
    const int teams = kWarps / sharing;
    const int slice = slice_of(p.tiles);
    const int first_tile = (static_cast<int>(blockIdx.x) - all.first[index]) * teams * MT;
    const int token_tile = static_cast<int>(blockIdx.y) * NT;
    const int begin = warp % sharing * slice;
    const int end = begin + slice < p.tiles ? begin + slice : p.tiles;
    Tile<MT, NT> tile;
    tile.clear();
    if (begin < end) tile.template run<true>(p, first_tile + warp / sharing * MT, token_tile, all.tokens, begin, end);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                parts[warp][n * kTokens + lane % 4 * 2 + i % 2][m * kTile + lane / 4 + i / 2 * 8] =
                    tile.sums[m][n][i];
            }
        }
    }
    __syncthreads();
    const int slices = divide_up(p.tiles, slice);
    for (int i = static_cast<int>(threadIdx.x); i < teams * NT * kTokens * MT * kTile; i += kWarps * kWarp) {
        const int row = i % (MT * kTile);
        const int token = i / (MT * kTile) % (NT * kTokens);
        const int team = i / (MT * kTile) / (NT * kTokens);
        const int own_row = (first_tile + team * MT) * kTile + row;
        const int own_token = token_tile * kTokens + token;
        if (own_row >= p.rows || own_token >= all.tokens) continue;
        float sum = parts[team * sharing][token][row];
        for (int s = 1; s < slices; ++s) sum += parts[team * sharing + s][token][row];
        put(p, own_token, own_row, sum);
    }
}

constexpr int kWideRows = 2, kWideTokens = 4;  // tiles of a warp
constexpr int kRowWarps = 4, kTokenWarps = 2;

// For many tokens. A block computes 128 rows of 64 tokens; each warp goes through the slices.
__global__ void __launch_bounds__(kWarps* kWarp, 1) multiply_wide(Products all) {
    const int index = product_of(all, static_cast<int>(blockIdx.x));
    const Product& p = all.each[index];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int row_tile =
        ((static_cast<int>(blockIdx.x) - all.first[index]) * kRowWarps + warp % kRowWarps) * kWideRows;
    const int token_tile = (static_cast<int>(blockIdx.y) * kTokenWarps + warp / kRowWarps) * kWideTokens;
    const int slice = slice_of(p.tiles);
    Tile<kWideRows, kWideTokens> total;
    for (int begin = 0; begin < p.tiles; begin += slice) {
        Tile<kWideRows, kWideTokens> tile;
        tile.clear();
        tile.run<false>(p, row_tile, token_tile, all.tokens, begin,
                        begin + slice < p.tiles ? begin + slice : p.tiles);
#pragma unroll
        for (int m = 0; m < kWideRows; ++m) {
#pragma unroll
            for (int n = 0; n < kWideTokens; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    total.sums[m][n][i] =
                        begin == 0 ? tile.sums[m][n][i] : total.sums[m][n][i] + tile.sums[m][n][i];
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < kWideRows; ++m) {
#pragma unroll
        for (int n = 0; n < kWideTokens; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = (row_tile + m) * kTile + lane / 4 + i / 2 * 8;
                const int token = (token_tile + n) * kTokens + lane % 4 * 2 + i % 2;
                if (row < p.rows && token < all.tokens) put(p, token, row, total.sums[m][n][i]);
            }
        }
    }
}

template <typename Rows>
int number_blocks(Products& all, Rows rows_of_block) {
    all.first[0] = 0;
    for (int i = 0; i < all.count; ++i) {
        all.first[i + 1] = all.first[i] + divide_up(all.each[i].rows, rows_of_block(all.each[i]));
    }
    return all.first[all.count];
}

template <int MT, int NT>
int launch_narrow(Products& all, cudaStream_t stream) {
    const int blocks = number_blocks(
        all, [](const Product& p) { return kWarps / warps_of(p.tiles) * MT * kTile; });
    const dim3 grid(static_cast<unsigned>(blocks),
                    static_cast<unsigned>(divide_up(all.tokens, NT * kTokens)));
    return launch(multiply_narrow<MT, NT>, grid, kWarps * kWarp, stream, all);
}

__global__ void pack_kernel(const void* from, int rows, int columns, int first_row, int bytes, void* to) {
    const size_t count = static_cast<size_t>(rows) * columns;
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const size_t place = weight_place(first_row + static_cast<int>(i / columns),
                                          static_cast<int>(i % columns), tiles_of(columns), bytes);
        if (bytes == 2) {
            static_cast<uint16_t*>(to)[place] = static_cast<const uint16_t*>(from)[i];
        } else {
            static_cast<uint8_t*>(to)[place] = static_cast<const uint8_t*>(from)[i];
        }
    }
}

}  // namespace

int multiply(Products all, cudaStream_t stream) {
    if (all.tokens <= kTokens) return launch_narrow<1, 1>(all, stream);
    if (all.tokens <= 2 * kTokens) return launch_narrow<2, 2>(all, stream);
    if (all.tokens <= 4 * kTokens) return launch_narrow<2, 4>(all, stream);
    const int blocks =
        number_blocks(all, [](const Product&) { return kRowWarps * kWideRows * kTile; });
    const dim3 grid(static_cast<unsigned>(blocks),
                    static_cast<unsigned>(divide_up(all.tokens, kTokenWarps * kWideTokens * kTokens)));
    return launch(multiply_wide, grid, kWarps * kWarp, stream, all);
}

int pack(const void* from, int rows, int columns, int first_row, int bytes, void* to,
         cudaStream_t stream) {
    constexpr int kThreads = 256;
    const size_t blocks = (static_cast<size_t>(rows) * columns + kThreads - 1) / kThreads;
    const dim3 grid(static_cast<unsigned>(blocks < 4096 ? blocks : 4096));
    return launch(pack_kernel, grid, kThreads, stream, from, rows, columns, first_row, bytes, to);
}

}  // namespace rwkv::cuda
