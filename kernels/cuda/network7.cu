#include <variant>

#include "heads7.cuh"
#include "network.h"

namespace rwkv::cuda {
namespace {

struct DeviceLayer7 {
    NormVectors ln1, ln2;
    const float *mix_r, *mix_w, *mix_k, *mix_v, *mix_a, *mix_g;
    Vectors7 vectors;
    DeviceMatrix receptance, key, value, output;
    DeviceMatrix w1, a1, v1, g1, w2, a2, v2, g2;  // no v1 and v2 in layer 0
    const float* ffn_mix_k;
    DeviceMatrix ffn_key;
    Value ffn_value;
};

class Network7 : public Network {
public:
    explicit Network7(const Spec& spec) : Network(spec) { check_heads(spec); }

private:
    void load_layers(Loader& loader, const ModelWeights& weights) override;
    void reserve(Arena& arena) override;
    void time_mix(int index) override;
    void channel_mix(int index) override;

    std::vector<DeviceLayer7> layers_;
    float *r_ = nullptr, *k_ = nullptr, *v_ = nullptr, *first_v_ = nullptr;      // [rows, D]
    float *w_ = nullptr, *a_ = nullptr, *share_ = nullptr, *gate_ = nullptr;     // [rows, D]
    Activations low_w_{}, low_a_{}, low_v_{}, low_g_{};                          // [rows, rank]
    Activations y_{};                                                            // [rows, D]
};

void Network7::load_layers(Loader& loader, const ModelWeights& weights) {
    layers_.clear();
    for (const Layer7& from : std::get<Layers<Layer7>>(weights.layers)) {
        const bool first = layers_.empty();
        DeviceLayer7 layer{};
        layer.ln1 = loader.norm(from.ln1);
        layer.ln2 = loader.norm(from.ln2);
        layer.mix_r = loader.vector(from.mix_r);
        layer.mix_w = loader.vector(from.mix_w);
        layer.mix_k = loader.vector(from.mix_k);
        layer.mix_v = loader.vector(from.mix_v);
        layer.mix_a = loader.vector(from.mix_a);
        layer.mix_g = loader.vector(from.mix_g);
        layer.vectors.w0 = loader.vector(from.w0);
        layer.vectors.a0 = loader.vector(from.a0);
        layer.vectors.v0 = first ? nullptr : loader.vector(from.v0);
        layer.vectors.k_k = loader.vector(from.k_k);
        layer.vectors.k_a = loader.vector(from.k_a);
        layer.vectors.r_k = loader.vector(from.r_k);
        layer.vectors.ln_x = loader.norm(from.ln_x);
        layer.receptance = loader.matrix(from.receptance);
        layer.key = loader.matrix(from.key);
        layer.value = loader.matrix(from.value);
        layer.output = loader.matrix(from.output);
        layer.w1 = loader.matrix(from.w1);
        layer.w2 = loader.matrix(from.w2);
        layer.a1 = loader.matrix(from.a1);
        layer.a2 = loader.matrix(from.a2);
        layer.g1 = loader.matrix(from.g1);
        layer.g2 = loader.matrix(from.g2);
        if (!first) {
            layer.v1 = loader.matrix(from.v1);
            layer.v2 = loader.matrix(from.v2);
        }
        layer.ffn_mix_k = loader.vector(from.ffn_mix_k);
        layer.ffn_key = loader.matrix(from.ffn_key);
        layer.ffn_value = loader.value(from.ffn_value);
        layers_.push_back(layer);
    }
}

void Network7::reserve(Arena& arena) {
    for (float** buffer : {&r_, &k_, &v_, &first_v_, &w_, &a_, &share_, &gate_}) {
        *buffer = floats(arena, spec_.width);
    }
    low_w_ = activations(arena, static_cast<int>(spec_.rank_w));
    low_a_ = activations(arena, static_cast<int>(spec_.rank_a));
    low_v_ = activations(arena, static_cast<int>(spec_.rank_v));
    low_g_ = activations(arena, static_cast<int>(spec_.rank_g));
    y_ = activations(arena, width_);
}

void Network7::time_mix(int index) {
    const DeviceLayer7& layer = layers_[static_cast<std::size_t>(index)];
    shift(layer.ln1, {layer.mix_r, layer.mix_k, layer.mix_v, layer.mix_w, layer.mix_a, layer.mix_g},
          att_shift(index));
    const Product r = product(layer.receptance, mixed_[0], r_);
    const Product k = product(layer.key, mixed_[1], k_);
    const Product v = product(layer.value, mixed_[2], v_);
    const Product w1 = product(layer.w1, mixed_[3], low_w_, Finish::tanh);
    const Product a1 = product(layer.a1, mixed_[4], low_a_);
    const Product g1 = product(layer.g1, mixed_[5], low_g_, Finish::sigmoid);
    const Product w2 = product(layer.w2, low_w_, w_);
    const Product a2 = product(layer.a2, low_a_, a_);
    const Product g2 = product(layer.g2, low_g_, gate_);
    if (index == 0) {
        multiply_all({r, k, v, w1, a1, g1});
        multiply_all({w2, a2, g2});
    } else {
        multiply_all({r, k, v, w1, a1, g1, product(layer.v1, mixed_[2], low_v_)});
        multiply_all({w2, a2, g2, product(layer.v2, low_v_, share_)});
    }
    const Projected7 projected{r_, k_, v_, w_, a_, share_, gate_, first_v_};
    check(mix_heads7(batch_, layer.vectors, projected, static_cast<int>(spec_.heads()),
                     static_cast<int>(spec_.head_size), spec_.group_norm_eps, sums(index), y_, stream_),
          "computing");
    multiply_all({product(layer.output, y_, x_, Finish::add)});
}

void Network7::channel_mix(int index) {
    const DeviceLayer7& layer = layers_[static_cast<std::size_t>(index)];
    shift(layer.ln2, {layer.ffn_mix_k}, ffn_shift(index));
    multiply_all({product(layer.ffn_key, mixed_[0], hidden_, Finish::squared_relu)});
    add_hidden(layer.ffn_value, nullptr);
}

}  // namespace

std::unique_ptr<Network> make_network7(const Spec& spec) { return std::make_unique<Network7>(spec); }

}  // namespace rwkv::cuda
