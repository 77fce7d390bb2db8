// A whole model: borrowed weights, and steps over all layers.
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
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "rwkv/kernels.h"
#include "rwkv/thread_pool.h"
#include "rwkv/weights.h"

namespace rwkv {

enum class Generation { v4, v5_0, v5_1, v5_2, v6, v7, v7a };

struct Spec {
    Generation generation;
    bool normed;             // the embeddings have gone through ln0 already
    std::size_t layers;
    std::size_t width;       // D
    std::size_t att_width;   // A
    std::size_t vocabulary;  // V
    std::size_t head_size;   // N; 0 in RWKV-4, which has no heads
    std::size_t hidden;      // F, of the channel mix
    std::size_t rank_w, rank_a, rank_v, rank_g, rank_mix;  // 0 where the generation has none
    float group_norm_eps;

    std::size_t heads() const { return att_width / head_size; }
    // Floats of one layer: att_shift [D], then in RWKV-4 numerator, denominator and exponent [A], in
    // 5 and 6 wkv [H, N_k, N_v], in 7 wkv [H, N_v, N_k]; and ffn_shift [D].
    std::size_t layer_state() const {
        return 2 * width + att_width * (generation == Generation::v4 ? 3 : head_size);
    }
    std::size_t state() const { return layers * layer_state(); }
    // The state before the first token.
    std::vector<float> new_state() const;
};

// Ids that follow one state.
struct Segment {
    const std::uint32_t* ids;  // all below V
    std::size_t count;         // at least 1
    float* state;              // [Spec::state()], updated in place
    float* logits;             // [V], written after the last id
    // [Spec::state()] at any address, copied into `state` first; null where that holds it already.
    const unsigned char* before = nullptr;
};

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

    // Calls body(i) once for every i < count on the threads of the model, and throws on what one of
    // them throws. Takes turns with forward.
    void share(std::size_t count, const std::function<void(std::size_t)>& body);

private:
    struct Workshop;  // what a call needs for itself: threads and buffers

    Workshop& workshop();
    void copy_states(const std::vector<Segment>& segments, ThreadPool& pool) const;

    Spec spec_;
    ModelWeights weights_;
    const Kernels& kernels_;
    std::size_t threads_;
    std::uint64_t inherited_channels_ = 0;  // active ones that were counted before a fork
    pid_t owner_ = 0;
    std::unique_ptr<Workshop> workshop_;
};

}  // namespace rwkv
