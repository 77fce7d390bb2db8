// The weights of a model: vectors that are copied, and matrices that are borrowed.
//
// Sizes: D the width, A the width inside the time mix, H heads of N channels, F hidden channels of
// the channel mix, V the vocabulary. Every `mix_*` is the share of the token before.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "rwkv/kernels.h"

namespace rwkv {

using Vector = std::vector<float>;

struct Norm {
    Vector weight, bias;
};

// The channel mix of RWKV-4, 5 and 6.
struct GatedChannelMix {
    Vector mix_k, mix_r;  // [D]
    Matrix receptance;    // [D, D]
    Matrix key, value;    // [F, D]
};

// What surrounds the matrix that decays in RWKV-5 and 6.
struct MatrixTimeMix {
    Matrix receptance, key, value;  // [A, D]
    std::optional<Matrix> gate;     // [A, D]; none in RWKV-5.0
    Matrix output;                  // [D, A]
    Vector first;                   // [A]: bonus of the current token
    Norm ln_x;                      // [A]
};

struct Layer4 {
    Norm ln1, ln2;                  // [D]
    Vector mix_k, mix_v, mix_r;     // [D]
    Vector decay, first;            // [A]: logarithms
    Matrix receptance, key, value;  // [A, D]
    Matrix output;                  // [D, A]
    GatedChannelMix ffn;
};

struct Layer5 {
    Norm ln1, ln2;                      // [D]
    Vector mix_k, mix_v, mix_r, mix_g;  // [D]; no mix_g without a gate
    Vector decay;                       // [A]: in [0, 1]
    MatrixTimeMix att;
    GatedChannelMix ffn;
};

struct Layer6 {
    Norm ln1, ln2;                             // [D]
    Vector mix_x;                              // [D]: for the input of w1
    Vector mix_w, mix_k, mix_v, mix_r, mix_g;  // [D]
    Matrix mix_w1;                             // [5 rank_mix, D]
    Matrix mix_w2;                             // [5 D, rank_mix]: changes of the five, in this order
    Vector decay;                              // [A]: logarithm of minus the logarithm
    Matrix decay_w1, decay_w2;                 // [rank_w, D], [A, rank_w]
    MatrixTimeMix att;
    GatedChannelMix ffn;
};

// RWKV-7a: every token scales the hidden channels in its own way.
struct DeepEmbed {
    static constexpr std::size_t kSide = 32;

    Matrix own;       // [V, 32 * 32]
    Matrix from_emb;  // [32 * 32, D]
    Matrix in, out;   // [32, D], [F, 32]
    Vector base;      // [F]
};

struct Layer7 {
    Norm ln1, ln2;                                    // [D]
    Vector mix_r, mix_w, mix_k, mix_v, mix_a, mix_g;  // [D]
    Vector w0, a0, v0, k_k, k_a, r_k;                 // [D]; no v0 in layer 0
    Norm ln_x;                                        // [D]
    Matrix receptance, key, value, output;            // [D, D]
    Matrix w1, a1, v1, g1;                            // [rank, D]; no v1 in layer 0
    Matrix w2, a2, v2, g2;                            // [D, rank]; no v2 in layer 0
    Vector ffn_mix_k;                                 // [D]
    Matrix ffn_key, ffn_value;                        // [F, D]
    std::optional<DeepEmbed> deep_embed;
};

template <class Layer>
using Layers = std::vector<Layer>;

struct ModelWeights {
    Matrix emb, head;   // [V, D]
    Norm ln0, ln_out;   // [D]; no ln0 where the embeddings are normed
    std::variant<Layers<Layer4>, Layers<Layer5>, Layers<Layer6>, Layers<Layer7>> layers;
};

}  // namespace rwkv
