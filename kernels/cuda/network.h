// The layers of a model on the device: what all generations share.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "batch.cuh"
#include "device.h"
#include "matmul.cuh"
#include "mixing.cuh"
#include "rwkv/model.h"
#include "value.cuh"
#include "weights.h"

namespace rwkv::cuda {

// The most rows of one call: enough to use each weight often.
constexpr int kMaxRows = 256;

class Network {
public:
    virtual ~Network() = default;
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    // Takes the memory for weights and activations, with logits for `outputs` rows.
    void load(Loader& loader, Arena& arena, const ModelWeights& weights, int outputs);

    // Enqueues a step of all layers over rows of the embedding [tokens, width], and what was looked up
    // for them [tokens, looked_up].
    void run(const Batch& batch, const float* embeddings, const float* looked_up, cudaStream_t stream);

    // Numbers of each token, beside its embedding, that the host looks up for it.
    virtual std::size_t looked_up() const { return 0; }
    virtual void look_up(std::uint32_t, float*) const {}

    float* logits() const { return logits_; }  // [outputs, vocabulary]

protected:
    explicit Network(const Spec& spec) : spec_(spec), width_(static_cast<int>(spec.width)) {}

    virtual void load_layers(Loader& loader, const ModelWeights& weights) = 0;
    virtual void reserve(Arena& arena) = 0;
    virtual void time_mix(int layer) = 0;
    virtual void channel_mix(int layer) = 0;

    Activations activations(Arena& arena, int channels, int tokens = kMaxRows) const;
    static float* floats(Arena& arena, std::size_t channels) {
        return arena.take<float>(channels * kMaxRows);
    }

    // Normalizes what is in x_ with all that was added, and mixes it into mixed_. Without `keep` the
    // state stays as it is, for shift_again.
    void shift(const NormVectors& norm, std::initializer_list<const float*> mixes, std::size_t offset,
               bool keep = true);
    // Mixes what is normalized anew, with `shares` [rows, mixes, width] more of the token before.
    void shift_again(std::initializer_list<const float*> mixes, const float* shares, std::size_t offset);
    Product product(const DeviceMatrix& matrix, const Activations& x, float* y,
                    Finish finish = Finish::none) const;
    Product product(const DeviceMatrix& matrix, const Activations& x, const Activations& y,
                    Finish finish = Finish::none) const;
    void multiply_all(std::initializer_list<Product> products);
    // Leaves the sum of the rows of `value` to what normalizes next, times `gate` if there is one.
    void add_hidden(const Value& value, const float* gate);

    std::size_t att_shift(int layer) const { return static_cast<std::size_t>(layer) * spec_.layer_state(); }
    std::size_t sums(int layer) const { return att_shift(layer) + spec_.width; }
    std::size_t ffn_shift(int layer) const { return att_shift(layer + 1) - spec_.width; }

    const Spec spec_;
    const int width_;
    const float* looked_up_ = nullptr;
    Batch batch_{};
    cudaStream_t stream_ = nullptr;
    float *x_ = nullptr, *other_ = nullptr;  // [rows, width]
    float* normal_ = nullptr;                // [rows, width]
    float* hidden_ = nullptr;                // [rows, hidden]
    Activations mixed_[kMaxMixes]{};         // [rows, width]

private:
    Shift shift_into_mixed(std::initializer_list<const float*> mixes, std::size_t offset) const;

    NormVectors ln0_{}, ln_out_{};  // no ln0 where the embeddings are normed
    DeviceMatrix head_;
    float* parts_ = nullptr;  // [parts, rows, width]
    Added added_{};
    Activations last_{};      // [outputs, width]
    float* logits_ = nullptr;
};

// Refuses heads that there are no kernels for.
void check_heads(const Spec& spec);

// Refuses what there are no kernels for.
std::unique_ptr<Network> make_network(const Spec& spec);

std::unique_ptr<Network> make_network4(const Spec& spec);
std::unique_ptr<Network> make_network5(const Spec& spec);
std::unique_ptr<Network> make_network6(const Spec& spec);
std::unique_ptr<Network> make_network7(const Spec& spec);

}  // namespace rwkv::cuda
