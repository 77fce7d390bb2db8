// The operations that exist once per instruction set, and the contract that each version keeps.
//
// This header is read by files compiled for newer CPUs, so it must not include the standard
// library: the linker could keep their copy of an inline function for every CPU.
//
// Order of sums. Results must not depend on how token ids are split over calls, on the batch or on
// the number of threads. So every output element is one sum whose order follows from its own length
// alone, never from the tile, the row or the number of tokens it is computed with.
//
// Error bounds against exact arithmetic, with e = 2^-24 and n the length of the sum, unless float32
// overflows on the way. matmul, sum_rows and sum_all_rows round the activations first (see below);
// theirs hold for the rounded ones:
//   matmul, sum_rows,        (n + 2) e * sum |w x|; with bf16 weights any subnormal number may be
//   sum_all_rows             taken for zero
//   layer_norm               (n / 8 + 16) e * (|weight| * max |x| / sqrt(variance + eps) + |bias|)
//   token_shift              4 e * (|x| + |previous|), for mix in [0, 1]
//   sigmoid, decay7          1e-6 of the result, or 1e-37
//   decay6                   1e-6 (1 + exp(x + bias)) of the result, or 1e-37
//   wkv5, wkv7, state and y  (n + 8) e * the same sums over absolute values
//   wkv4, sums and y         2e-6 * the same over absolute values, or 1e-37 of the largest term
//   weigh                    (4 + 2 |x - maximum| scale) e of each weight, or 1e-37
//   weigh, mass_from         the sum: (n + 4) 2^-53 of itself
// NaN and infinity in the input give NaN or infinity in the results they belong to.
// Matrices may start at any address, also an odd one; everything else is aligned to its type.
//
// Activations are rounded as the weights they meet are:
//   f32   not at all.
//   bf16  to bfloat16, to the nearest, ties to even.
//   q8    a weight is an int8 times the float32 scale of its group: kGroup columns of one row, the
//         last group of a row may be shorter. Activations are rounded in groups of kFine: to the
//         nearest multiple (ties to even) of a unit that is 1/127 of the largest magnitude; if that
//         is below 2^-100 they become zero. Products and sums inside such a group are exact
//         integers. NaN or infinity among them makes every result of their token NaN. Where rows
//         are summed, the scale of a row is part of the activation before that is rounded, so each
//         group of columns has activations of its own.
//   q4    as said with the layouts:
//
// q8 weights have two layouts, both without alignment:
// q8, for matmul: tiles of kTileRows rows. Each has for every group in turn the scales of all its rows,
//   and blocks of 4 columns of all its rows: byte 4 r + k of a block is the number of column k of row
//   r, plus 128. (Integer dot products of x86 want one factor without a sign, and others lose nothing.)
//   Rows are filled up, and columns to a multiple of kFine.
// q8_rows, for sum_rows and for rows that are looked up: the numbers of a row one after the other, and
//   its scales elsewhere.
//
// q4 weights. A weight is scale * number + least, with a number from 0 to 15, and bfloat16 scale and
// least of its group: kGroupQ4 columns of one row. There are two layouts, both without alignment:
// q4, for matmul: tiles of kTileRows rows. Each has for every group in turn the scales of all its
//   rows, their leasts, and blocks of 8 columns of all its rows: byte 4 r + k of a block holds the
//   numbers of columns k (lower half) and 4 + k of row r. Rows and columns are filled up.
// q4_rows, for sum_rows: each row has for every two groups in turn scale and least of both, and 64
//   bytes that are 16 little-endian integers: bits 4 k to 4 k + 3 of integer i are the number of column
//   16 k + i. Columns are filled up.
// matmul rounds the activations of each token to 16 bits, to the nearest multiple (ties to even) of a
// unit that is 2^-13 of the power of two at or below max |x|, but at least 2^-126. A row's terms are the
// scale times the exact sum, then the least times the sum of the group's activations. NaN or infinity
// in x makes every result of its token NaN. Its bound is that for the rounded x, (n + 2) e *
// sum (|scale number| + |least|) |x|.
// sum_rows may round activations times scales to 16 bits in the same way, with a unit for each group of
// columns and kPart of rows. Its bound is (n + 4) e of the same sum, and 2^-14 max |scale x| sum number.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace rwkv {

enum class Weights : uint8_t { f32, bf16, q8, q8_rows, q4, q4_rows };

// Columns of a row that share a scale in q8.
constexpr size_t kGroup = 128;
// Activations that share a unit where they meet q8 weights.
constexpr size_t kFine = 32;
// Rows that sum_all_rows sums before it adds them to the others.
constexpr size_t kPart = 128;
// Tokens for which sum_all_rows may be asked at once.
constexpr size_t kMaxSummed = 128;

// Columns of a row that share scale and least in q4.
constexpr size_t kGroupQ4 = 64;

// Rows of a tile of q8 or q4.
constexpr size_t kTileRows = 16;

// A borrowed matrix [rows, columns], row-major or in tiles, at any address.
struct Matrix {
    const unsigned char* data;
    size_t rows;
    size_t columns;
    Weights weights;
    const unsigned char* scales = nullptr;  // of q8_rows: float32 [rows, groups of a row], at any address
};

// Channels of the time mix of RWKV-4 for one token; all vectors have n elements.
struct Wkv4Channels {
    size_t size;         // n
    const float* k;      // key
    const float* v;      // value
    const float* decay;  // logarithm, negative
    const float* first;  // logarithm of the bonus of the current token
};

// One head of the time mix of RWKV-5 or 6 for one token; all vectors have N elements.
struct Wkv5Head {
    size_t size;         // N
    const float* r;      // receptance
    const float* w;      // decay, in [0, 1]
    const float* k;      // key
    const float* v;      // value
    const float* first;  // bonus of the current token
};

// One head of the time mix of RWKV-7 for one token; all vectors have N elements.
struct Wkv7Head {
    size_t size;         // N
    const float* r;      // receptance
    const float* w;      // decay, in (0, 1)
    const float* k;      // key
    const float* v;      // value
    const float* kk;     // removal key, of unit length
    const float* kk_a;   // kk * a
};

// Of some weights in the choice of a token.
struct Mass {
    double sum;
    size_t count;
};

// Elements that keep_between may write, whatever they hold, after those that it keeps.
constexpr size_t kRoom = 16;

struct Kernels {
    const char* name;

    // rounded [rounded_bytes(weights, n)] = n activations of one token, as matmul wants them for
    // weights of this type; aligned to 64 bytes.
    void (*round)(Weights weights, const float* x, size_t n, unsigned char* rounded);

    // y[t * y_stride + row] = sum_j w[row, j] * x[t, j] for row in [first, last) and t in [0, tokens);
    // x are the rounded activations of one token after the other.
    void (*matmul)(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
                   float* y, size_t y_stride);

    // y[c] = sum over i < count, in order, of x[rows[i]] * w[rows[i], c] for c in [first, last),
    // where `first` is a multiple of kGroup. All rows lie in the same kPart of them, and x is 0 for those of the part that are left out.
    // The `following` rows behind them in `rows`, all of other parts, are needed next; they change
    // nothing but the time.
    void (*sum_rows)(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
                     const float* x, size_t first, size_t last, float* y);

    // y[t * y_stride + c] = sum over all rows of x[t * x_stride + row] * w[row, c], for t in
    // [0, tokens), tokens <= kMaxSummed, and c in [first, last), a group of kGroup columns: the sum,
    // in order, of what sum_rows gives for each kPart of rows.
    void (*sum_all_rows)(const Matrix& w, const float* x, size_t x_stride, size_t tokens,
                         size_t first, size_t last, float* y, size_t y_stride);

    // y = (x - mean) / sqrt(variance + eps) * weight + bias over n elements; y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, size_t n, float eps,
                       float* y);

    // y = x + (previous - x) * mix, elementwise over n.
    void (*token_shift)(const float* x, const float* previous, const float* mix, size_t n, float* y);

    // x = 1 / (1 + exp(-(x + bias))), elementwise over n; bias may be x.
    void (*sigmoid)(float* x, const float* bias, size_t n);

    // x = exp(-exp(x + bias)), elementwise over n.
    void (*decay6)(float* x, const float* bias, size_t n);

    // x = exp(-exp(-1/2) * sigmoid(x + bias)), elementwise over n.
    void (*decay7)(float* x, const float* bias, size_t n);

    // The sums in the state are divided by exp(exponent), the largest weight so far. With their
    // whole values: y = (numerator + exp(first + k) * v) / (denominator + exp(first + k)), then
    // numerator = numerator * exp(decay) + exp(k) * v, and denominator likewise with 1 for v.
    void (*wkv4)(const Wkv4Channels& channels, float* numerator, float* denominator,
                 float* exponent, float* y);

    // y = r * (diag(first) * (k outer v) + state); state [N_k, N_v] = diag(w) * state + k outer v.
    void (*wkv5)(const Wkv5Head& head, float* state, float* y);

    // state [N_v, N_k] = state * diag(w) + (state * -kk) outer kk_a + v outer k; y = state * r.
    void (*wkv7)(const Wkv7Head& head, float* state, float* y);

    // The largest of x; n > 0. x may hold -infinity, and no NaN.
    float (*largest)(const float* x, size_t n);

    // weights[i] = exp((x[i] - maximum) * scale), 0 where that is below exp(-87), and returns their
    // sum; x[i] <= maximum, scale > 0.
    double (*weigh)(const float* x, size_t n, float maximum, float scale, float* weights);

    // Sum and number of the weights that are at least `least`; weights are not negative.
    Mass (*mass_from)(const float* weights, size_t n, float least);

    // Copies the weights in [least, end), and with kept_ids also their ids (their places if ids is
    // null), in order, and returns how many. Results may lie where the sources do, and need room for
    // kRoom more than are kept.
    size_t (*keep_between)(const float* weights, const uint32_t* ids, size_t n, float least,
                           float end, float* kept, uint32_t* kept_ids);
};

}  // namespace rwkv
