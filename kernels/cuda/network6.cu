#include <variant>

#include "gated_network.h"

namespace rwkv::cuda {
namespace {

constexpr int kMixes = 5;  // w, k, v, r, g

struct DeviceLayer6 {
    NormVectors ln1, ln2;
    const float* mix_x;
    const float* mixes[kMixes];
    DeviceMatrix mix_w1[kMixes], mix_w2[kMixes];
    DeviceMatrix decay_w1, decay_w2;
    DeviceTimeMix att;
    DeviceChannelMix ffn;
};

class Network6 : public GatedNetwork {
public:
    explicit Network6(const Spec& spec) : GatedNetwork(spec) { check_heads(spec); }

private:
    void load_layers(Loader& loader, const ModelWeights& weights) override;
    void reserve(Arena& arena) override;
    void time_mix(int index) override;
    void channel_mix(int index) override {
        const DeviceLayer6& layer = layers_[static_cast<std::size_t>(index)];
        mix_channels(index, layer.ln2, layer.ffn);
    }
    void mix_by_token(const DeviceLayer6& layer, int index);

    std::vector<DeviceLayer6> layers_;
    Activations low_mix_[kMixes]{};  // [rows, rank_mix]
    float* shares_ = nullptr;        // [rows, 5, D]
    Activations low_w_{};            // [rows, rank_w]
    float* w_ = nullptr;             // [rows, A]
};

void Network6::load_layers(Loader& loader, const ModelWeights& weights) {
    layers_.clear();
    for (const Layer6& from : std::get<Layers<Layer6>>(weights.layers)) {
        DeviceLayer6 layer{};
        layer.ln1 = loader.norm(from.ln1);
        layer.ln2 = loader.norm(from.ln2);
        layer.mix_x = loader.vector(from.mix_x);
        const Vector* mixes[kMixes] = {&from.mix_w, &from.mix_k, &from.mix_v, &from.mix_r, &from.mix_g};
        for (std::size_t i = 0; i < kMixes; ++i) {
            layer.mixes[i] = loader.vector(*mixes[i]);
            const std::size_t rank = spec_.rank_mix, d = spec_.width;
            layer.mix_w1[i] = loader.part(from.mix_w1, i * rank, (i + 1) * rank);
            layer.mix_w2[i] = loader.part(from.mix_w2, i * d, (i + 1) * d);
        }
        layer.decay_w1 = loader.matrix(from.decay_w1);
        layer.decay_w2 = loader.matrix(from.decay_w2);
        layer.att = load_time_mix(loader, from.att, from.decay);
        layer.ffn = load_channel_mix(loader, from.ffn);
        layers_.push_back(layer);
    }
}

void Network6::reserve(Arena& arena) {
    GatedNetwork::reserve(arena);
    for (Activations& low : low_mix_) low = activations(arena, static_cast<int>(spec_.rank_mix));
    shares_ = floats(arena, kMixes * spec_.width);
    low_w_ = activations(arena, static_cast<int>(spec_.rank_w));
    w_ = floats(arena, spec_.att_width);
}

// mixed_[0] to mixed_[4] are shifted by shares that depend on the token and the one before.
void Network6::mix_by_token(const DeviceLayer6& layer, int index) {
    shift(layer.ln1, {layer.mix_x}, att_shift(index), false);
    const auto first = [&](int i) { return product(layer.mix_w1[i], mixed_[0], low_mix_[i], Finish::tanh); };
    multiply_all({first(0), first(1), first(2), first(3), first(4)});
    const auto second = [&](int i) {
        Product share = product(layer.mix_w2[i], low_mix_[i], shares_ + i * width_);
        share.stride = kMixes * width_;
        return share;
    };
    multiply_all({second(0), second(1), second(2), second(3), second(4)});
    shift_again({layer.mixes[0], layer.mixes[1], layer.mixes[2], layer.mixes[3], layer.mixes[4]}, shares_,
                att_shift(index));
}

void Network6::time_mix(int index) {
    const DeviceLayer6& layer = layers_[static_cast<std::size_t>(index)];
    const DeviceTimeMix& att = layer.att;
    mix_by_token(layer, index);
    multiply_all({product(layer.decay_w1, mixed_[0], low_w_, Finish::tanh), product(att.key, mixed_[1], k_),
                  product(att.value, mixed_[2], v_), product(att.receptance, mixed_[3], r_),
                  product(att.gate, mixed_[4], gate_, Finish::silu)});
    multiply_all({product(layer.decay_w2, low_w_, w_)});
    check(mix_heads5(batch_, att.vectors, {r_, k_, v_, w_, gate_}, static_cast<int>(spec_.heads()),
                     static_cast<int>(spec_.head_size), spec_.group_norm_eps, sums(index), y_, stream_),
          "computing");
    multiply_all({product(att.output, y_, x_, Finish::add)});
}

}  // namespace

std::unique_ptr<Network> make_network6(const Spec& spec) { return std::make_unique<Network6>(spec); }

}  // namespace rwkv::cuda
