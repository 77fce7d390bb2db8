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

constexpr uint32_t kOnes = 0x3F803F80u;       // 1 and 1 in bfloat16
constexpr uint32_t kOffsets = 0x43004300u;    // 128 and 128: a number below 128 fits into their bits
constexpr float kOffset = 128.0f;

// The numbers of a tile of q4, each 128 too large.
__device__ inline uint4 widen_q4(uint32_t eight) {
    const auto two = [&](int shift) { return (eight >> shift & 0x000F000Fu) | kOffsets; };
    return make_uint4(two(0), two(4), two(8), two(12));
}

__device__ inline uint32_t word_of(const uint4& four, int index) {
    return index == 0 ? four.x : index == 1 ? four.y : index == 2 ? four.z : four.w;
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

    // The sum of the activations of a group, which least multiplies, is a product with ones; it also
    // takes away exactly what the numbers are too large.
    template <bool kOnce>
    __device__ void run_q4(const Product& p, const uint4* const (&rows)[MT], const int (&own_tiles)[MT],
                           const bool (&there)[NT], int token_tile, int begin, int end) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
        for (int group = begin / kGroupTilesQ4; group < end / kGroupTilesQ4; ++group) {
            Tile part;
            part.clear();
            float plain[NT][4];
            uint4 packed[MT];
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) plain[n][i] = 0;
            }
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                packed[m] = load_weights<kOnce>(rows[m] + static_cast<size_t>(group) * kWarp);
            }
#pragma unroll
            for (int k = 0; k < kGroupTilesQ4; ++k) {
                uint4 weights[MT], x[NT];
#pragma unroll
                for (int m = 0; m < MT; ++m) weights[m] = widen_q4(word_of(packed[m], k));
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    x[n] = load_tokens(p.x, token_tile + n, group * kGroupTilesQ4 + k, there[n]);
                    multiply_tiles(plain[n], ones, x[n].x, x[n].y);
                    multiply_tiles(plain[n], ones, x[n].z, x[n].w);
                }
                part.add(weights, x);
            }
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const size_t at = static_cast<size_t>(own_tiles[m]) * p.groups + group;
                    const uint32_t pair = p.pairs[at * kTile + lane / 4 + 8 * half];
                    const float scale = widen(pair & 0xFFFFu), least = widen(pair >> 16);
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; ++i) {
                            const float sum = __fmaf_rn(-kOffset, plain[n][i], part.sums[m][n][i]);
                            sums[m][n][i] = __fmaf_rn(scale, sum, __fmaf_rn(least, plain[n][i], sums[m][n][i]));
                        }
                    }
                }
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
        const int pieces = p.scales ? p.tiles / 2 : p.pairs ? p.tiles / kGroupTilesQ4 : p.tiles;
        const uint4* rows[MT];
        int own_tiles[MT];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            own_tiles[m] = row_tile + m < row_tiles ? row_tile + m : row_tiles - 1;
            rows[m] = p.weights + static_cast<size_t>(own_tiles[m]) * pieces * kWarp + lane;
        }
        if (p.pairs != nullptr) {
            run_q4<kOnce>(p, rows, own_tiles, there, token_tile, begin, end);
            return;
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

__global__ void pack_kernel(const uint16_t* from, int rows, int columns, int first_row, uint16_t* to) {
    const size_t count = static_cast<size_t>(rows) * columns;
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        to[weight_place(first_row + static_cast<int>(i / columns), static_cast<int>(i % columns),
                        tiles_of(columns), 2)] = from[i];
    }
}

constexpr int kRecordQ8 = kTile * (4 + kGroupTiles * kTile);  // bytes of a group of a tile in a file

__global__ void pack_q8_kernel(const uint8_t* from, int tiles, int tile_bytes, int first_row, int rows,
                               int columns, uint8_t* to, float* scales) {
    constexpr int kGroupColumns = kGroupTiles * kTile;
    const int groups = divide_up(columns, kGroupColumns);
    const size_t count = static_cast<size_t>(tiles) * kTile * columns;
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const int row = static_cast<int>(i / columns), column = static_cast<int>(i % columns);
        const int target = first_row + row;
        if (target < 0 || target >= rows) continue;
        const int group = column / kGroupColumns, within = column % kGroupColumns;
        const uint8_t* own = from + static_cast<size_t>(row / kTile) * tile_bytes +
                             static_cast<size_t>(group) * kRecordQ8 + row % kTile * 4;
        const uint8_t biased = own[4 * kTile + within / 4 * 4 * kTile + within % 4];
        to[weight_place(target, column, tiles_of(columns), 1)] = biased ^ 0x80u;
        if (within == 0) {
            const uint32_t bits = uint32_t{own[0]} | uint32_t{own[1]} << 8 | uint32_t{own[2]} << 16 |
                                  uint32_t{own[3]} << 24;
            scales[static_cast<size_t>(target) * groups + group] = __uint_as_float(bits);
        }
    }
}

constexpr int kRecord = kTile * (4 + kGroupTilesQ4 * kTile / 2);  // bytes of a group of a tile in a file

__global__ void pack_q4_kernel(const uint8_t* from, int records, int first_record, uint32_t* to,
                               uint32_t* pairs) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, word = static_cast<int>(threadIdx.x) / kWarp;
    for (int index = static_cast<int>(blockIdx.x); index < records; index += static_cast<int>(gridDim.x)) {
        const uint8_t* record = from + static_cast<size_t>(index) * kRecord;
        const size_t target = static_cast<size_t>(first_record) + index;
        uint32_t numbers = 0;
        for (int i = 0; i < 4; ++i) {
            for (int half = 0; half < 2; ++half) {
                const int row = lane / 4 + 8 * (i % 2);
                const int column = word * kTile + i / 2 * 8 + lane % 4 * 2 + half;
                const uint32_t both = record[4 * kTile + column / 8 * 4 * kTile + 4 * row + column % 4];
                numbers |= (column % 8 >= 4 ? both >> 4 : both & 15u) << (4 * i + 16 * half);
            }
        }
        to[(target * kWarp + lane) * kGroupTilesQ4 + word] = numbers;
        if (word == 0 && lane < kTile) {
            const uint8_t* scale = record + 2 * lane;
            const uint8_t* least = scale + 2 * kTile;
            pairs[target * kTile + lane] = uint32_t{scale[0]} | uint32_t{scale[1]} << 8 |
                                           uint32_t{least[0]} << 16 | uint32_t{least[1]} << 24;
        }
    }
}

}  // namespace

int pack_q4(const void* from, int tiles, int groups, int first_tile, void* to, uint32_t* pairs,
            cudaStream_t stream) {
    const int records = tiles * groups;
    const dim3 grid(static_cast<unsigned>(records < 4096 ? records : 4096));
    return launch(pack_q4_kernel, grid, kGroupTilesQ4 * kWarp, stream, static_cast<const uint8_t*>(from),
                  records, first_tile * groups, static_cast<uint32_t*>(to), pairs);
}

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

constexpr int kPackThreads = 256;

dim3 pack_grid(int rows, int columns) {
    const size_t blocks = (static_cast<size_t>(rows) * columns + kPackThreads - 1) / kPackThreads;
    return dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096));
}

int pack(const void* from, int rows, int columns, int first_row, void* to, cudaStream_t stream) {
    return launch(pack_kernel, pack_grid(rows, columns), kPackThreads, stream,
                  static_cast<const uint16_t*>(from), rows, columns, first_row, static_cast<uint16_t*>(to));
}

int pack_q8(const void* from, int tiles, int tile_bytes, int first_row, int rows, int columns, void* to,
            float* scales, cudaStream_t stream) {
    return launch(pack_q8_kernel, pack_grid(tiles * kTile, columns), kPackThreads, stream,
                  static_cast<const uint8_t*>(from), tiles, tile_bytes, first_row, rows, columns,
                  static_cast<uint8_t*>(to), scales);
}

}  // namespace rwkv::cuda
