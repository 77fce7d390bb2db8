// One step over all layers, for some tokens of some segments: what all generations share.
#pragma once

#include <atomic>
#include <memory>

#include "rwkv/model.h"

namespace rwkv {

// Rows [first, first + count) of the activations belong to one state, in order.
struct Run {
    std::size_t first;
    std::size_t count;
    float* state;   // [Spec::state()], updated in place
    float* logits;  // [V] for the last row, or null
};

inline std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

class Step {
public:
    // The most rows of one call: enough to use each weight often, and few enough for the caches.
    static constexpr std::size_t kMaxRows = 128;
    static constexpr std::size_t kMaxProducts = 8;  // of one loop

    virtual ~Step() = default;
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;

    // ids [rows], runs cover [0, rows) in order, rows <= kMaxRows.
    void forward(const std::uint32_t* ids, std::size_t rows, const std::vector<Run>& runs);

    // Hidden channels of the channel mix that were not zero, over all calls.
    std::uint64_t active_channels() const { return active_channels_.load(std::memory_order_relaxed); }

protected:
    enum class Finish { none, tanh, sigmoid, silu, squared_relu, add_to_x };

    // y [rows, y_stride] = x [rows, x_stride] * matrix^T, then `finish` over the new columns.
    struct Product {
        const Matrix* matrix;
        const float* x;
        std::size_t x_stride;
        float* y;
        std::size_t y_stride;
        Finish finish;
    };

    // `mixes` is the number of mixed copies of the activations that a layer needs at once.
    Step(const Spec& spec, const ModelWeights& weights, const Kernels& kernels, ThreadPool& pool,
         std::size_t mixes);

    // Makes the buffers large enough.
    virtual void reserve(std::size_t rows);
    virtual void time_mix(std::size_t index) = 0;
    virtual void channel_mix(std::size_t index) = 0;

    // normal_ = the normalized x_.
    void normalize(const Norm& norm);
    // mixed(i) = normal_, shifted by mixes[i] towards the token before.
    void shift(std::size_t state_offset, const Vector* const* mixes, std::size_t count);
    // The normalized activations of the token before `row`: in the state where its run begins.
    const float* previous(std::size_t row, std::size_t state_offset) const;
    // The last normal_ of every run goes into its state.
    void keep(std::size_t state_offset);
    // A loop over `items` begins, which read memory from where(item) on: the threads learn where they
    // will begin to read in the loop after it, as it was in an earlier call of forward.
    template <class Where>
    void announce(std::size_t items, const Where& where) {
        const std::size_t threads = pool_.size();
        if (starts_.size() == loop_ * threads) {
            for (std::size_t thread = 0; thread < threads; ++thread) {
                starts_.push_back(where(pool_.first_item(thread, items)));
            }
        }
        ++loop_;
        const std::size_t next = loop_ * threads < starts_.size() ? loop_ * threads : 0;
        for (std::size_t thread = 0; thread < threads; ++thread) {
            pool_.expect(thread, starts_[next + thread]);
        }
    }
    // One loop over blocks of rows of all the matrices.
    void multiply(const Product* products, std::size_t count);
    // inputs [count] = the activations of the products, rounded for their weights; good until the
    // next call.
    void round(const Product* products, std::size_t count, const unsigned char** inputs);
    // One of the products for rows [first, last) of its matrix, without its finish.
    void multiply_rows(const Product& product, const unsigned char* input, std::size_t first,
                       std::size_t last);
    // Calls body(row) for every row; a few rows are not worth waking another thread.
    template <class Body>
    void for_rows(std::size_t rows, const Body& body) {
        if (rows > kFewRows) return pool_.run(rows, body);
        for (std::size_t row = 0; row < rows; ++row) body(row);
    }
    // x_ += hidden_ * value, times `gate` [rows, D] if there is one.
    void add_hidden(const Matrix& value, const float* gate = nullptr);

    float* mixed(std::size_t i) { return &mixed_[i * rows_ * spec_.width]; }
    std::size_t att_shift(std::size_t index) const { return index * spec_.layer_state(); }
    std::size_t sums(std::size_t index) const { return att_shift(index) + spec_.width; }
    std::size_t ffn_shift(std::size_t index) const { return att_shift(index + 1) - spec_.width; }

    const Spec& spec_;
    const ModelWeights& weights_;
    const Kernels& kernels_;
    ThreadPool& pool_;

    std::size_t rows_ = 0;
    const std::uint32_t* ids_ = nullptr;  // [rows]
    const std::vector<Run>* runs_ = nullptr;
    Vector x_, normal_;  // [rows, D]
    Vector hidden_;      // [rows, F]

private:
    static constexpr std::size_t kFewRows = 4;
    static constexpr std::size_t kSparseRows = 32;

    // Aligned as kernels want rounded activations.
    struct alignas(64) Line {
        unsigned char bytes[64];
    };

    void embed();
    void finish(const Product& product, std::size_t first, std::size_t last);
    // add_hidden by way of the hidden channels that are not zero, for rows [first, last); or by way
    // of all.
    void add_active(const Matrix& value, const float* gate, std::size_t first, std::size_t last);
    void add_all(const Matrix& value, const float* gate);
    std::size_t find_active(std::size_t row, std::size_t part, std::uint32_t* active) const;
    void project();

    std::size_t parts() const { return divide_up(spec_.hidden, kPart); }

    const std::size_t mixes_;
    std::size_t loop_ = 0;                      // of this call of forward
    std::vector<const unsigned char*> starts_;  // [loops, threads]: where a thread begins to read
    std::atomic<std::uint64_t> active_channels_{0};
    std::vector<std::size_t> run_of_;         // [rows]
    Vector mixed_;                            // [mixes][rows, D]
    std::vector<Line> rounded_;
    std::vector<std::size_t> counts_;         // [parts]: non-zero hidden channels of all rows
    Vector parts_;                            // [parts, at most kSparseRows, D]
};

// The step of the generation that `weights` belong to.
std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights, const Kernels& kernels,
                                ThreadPool& pool);

// The same for one generation; `layers` are those of `weights`.
#define RWKV_DECLARE_STEP(Layer)                                                                  \
    std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights,                \
                                    const Layers<Layer>& layers, const Kernels& kernels,          \
                                    ThreadPool& pool)
RWKV_DECLARE_STEP(Layer4);
RWKV_DECLARE_STEP(Layer5);
RWKV_DECLARE_STEP(Layer6);
RWKV_DECLARE_STEP(Layer7);
#undef RWKV_DECLARE_STEP

}  // namespace rwkv
