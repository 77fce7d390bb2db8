// A whole RWKV-7 model: borrowed weights, and steps over all layers.
//
// Results depend neither on how ids are split over calls, nor on the batch, nor on the number of
// threads: they are equal to the bit.
//
// After a fork the child may use its copy of a model, but not a Decoder, and its first call must
// not run beside another one: it starts threads anew, as the parent's do not exist in the child.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "rwkv/kernels.h"
#include "rwkv/thread_pool.h"

namespace rwkv {

struct Spec {
    std::size_t layers;
    std::size_t width;      // D
    std::size_t vocabulary; // V
    std::size_t head_size;  // N
    std::size_t hidden;     // F, of the channel mix
    std::size_t rank_w, rank_a, rank_v, rank_g;
    float group_norm_eps;

    std::size_t heads() const { return width / head_size; }
    // Floats of one layer: att_shift [D], wkv [H, N_v, N_k], ffn_shift [D].
    std::size_t layer_state() const { return 2 * width + width * head_size; }
    std::size_t state() const { return layers * layer_state(); }
};

using Vector = std::vector<float>;

struct Layer {
    Vector ln1_weight, ln1_bias, ln2_weight, ln2_bias;         // [D]
    Vector x_r, x_w, x_k, x_v, x_a, x_g;                       // [D]
    Vector w0, a0, v0, k_k, k_a, r_k, ln_x_weight, ln_x_bias;  // [D]; no v0 in layer 0
    Matrix receptance, key, value, output;                     // [D, D]
    Matrix w1, a1, v1, g1;                                     // [rank, D]; no v1 in layer 0
    Matrix w2, a2, v2, g2;                                     // [D, rank]; no v2 in layer 0
    Vector ffn_x_k;                                            // [D]
    Matrix ffn_key, ffn_value;                                 // [F, D]
};

struct ModelWeights {
    Matrix emb, head;                                          // [V, D]
    Vector ln0_weight, ln0_bias, ln_out_weight, ln_out_bias;   // [D]
    std::vector<Layer> layers;
};

// Ids that follow one state.
struct Segment {
    const std::uint32_t* ids;  // all below V
    std::size_t count;         // at least 1
    float* state;              // [Spec::state()], updated in place
    float* logits;             // [V], written after the last id
};

class Step;

class Model {
public:
    // `threads` counts the caller.
    Model(const Spec& spec, ModelWeights weights, const Kernels& kernels, std::size_t threads);
    ~Model();

    const Spec& spec() const { return spec_; }
    const Kernels& kernels() const { return kernels_; }
    // Those that could be started.
    std::size_t threads() const;

    // Hidden channels of the channel mix that were not zero, over all calls (a forked child counts
    // on from its parent); each token has layers * hidden of them.
    std::uint64_t active_channels();

    // Feeds the ids of every segment after its state. Calls from several threads take turns.
    void forward(const std::vector<Segment>& segments);

private:
    struct Workshop;  // what a call needs for itself: threads and buffers

    Workshop& workshop();

    Spec spec_;
    ModelWeights weights_;
    const Kernels& kernels_;
    std::size_t threads_;
    std::uint64_t inherited_channels_ = 0;  // active ones that were counted before a fork
    pid_t owner_ = 0;
    std::unique_ptr<Workshop> workshop_;
};

}  // namespace rwkv
