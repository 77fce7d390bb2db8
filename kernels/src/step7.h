// One step of RWKV-7 over all layers, for some tokens of some segments.
#pragma once

#include <atomic>

#include "rwkv/model.h"

namespace rwkv {

// Rows [first, first + count) of the activations belong to one state, in order.
struct Run {
    std::size_t first;
    std::size_t count;
    float* state;   // [Spec::state()], updated in place
    float* logits;  // [V] for the last row, or null
};

class Step {
public:
    // The most rows of one call: enough to use each weight often, and few enough for the caches.
    static constexpr std::size_t kMaxRows = 48;

    Step(const Spec& spec, const ModelWeights& weights, const Kernels& kernels, ThreadPool& pool);

    // ids [rows], runs cover [0, rows) in order, rows <= kMaxRows.
    void forward(const std::uint32_t* ids, std::size_t rows, const std::vector<Run>& runs);

    // Hidden channels of the channel mix that were not zero, over all calls.
    std::uint64_t active_channels() const { return active_channels_.load(std::memory_order_relaxed); }

private:
    struct Product;  // one matrix product of a phase

    void embed(const std::uint32_t* ids);
    void time_mix(std::size_t index);
    void mix_heads(const Layer& layer, std::size_t index, std::size_t head);
    void channel_mix(std::size_t index);
    void find_active(std::size_t row);
    void add_ffn(const Matrix& value);
    void project(const std::vector<Run>& runs);

    void normalize(const Vector& weight, const Vector& bias);
    void shift(std::size_t state_offset, const Vector* const* mixes, std::size_t count);
    void multiply(const Product* products, std::size_t count);
    const float* previous(std::size_t run, std::size_t row, std::size_t state_offset) const;
    void reserve(std::size_t rows);

    // The sum over hidden channels is made of the sums over parts of this many, in order.
    static constexpr std::size_t kPart = 128;
    std::size_t parts() const { return (spec_.hidden + kPart - 1) / kPart; }

    const Spec& spec_;
    const ModelWeights& weights_;
    const Kernels& kernels_;
    ThreadPool& pool_;

    std::atomic<std::uint64_t> active_channels_{0};
    std::size_t rows_ = 0;
    const std::vector<Run>* runs_ = nullptr;
    std::vector<std::size_t> run_of_;  // [rows]

    Vector x_, normal_;                            // [rows, D]
    Vector mixed_;                                 // [6][rows, D]
    Vector r_, k_, v_, first_v_, w_, a_, gate_;    // [rows, D]
    Vector share_, kk_, kk_a_, y_, out_;           // [rows, D]
    Vector low_w_, low_a_, low_v_, low_g_;         // [rows, rank]
    Vector hidden_;                                // [rows, F]
    Vector zeros_;                                 // [rank_g]
    std::vector<std::uint32_t> active_;            // [rows, F]: indices of non-zero hidden channels
    std::vector<std::size_t> active_starts_;       // [rows, parts + 1]: where in active_ a part begins
    Vector parts_;                                 // [parts, rows, D]
};

}  // namespace rwkv
