#include <variant>

#include "../src/elements.h"
#include "deep_embed.cuh"
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
    DeviceMatrix from_emb, in, out;  // of RWKV-7a
    const float* base;
};

static_assert(kSide == DeepEmbed::kSide);

class Network7 : public Network {
public:
    explicit Network7(const Spec& spec) : Network(spec) { check_heads(spec); }

    std::size_t looked_up() const override { return is_deep() ? spec_.layers * kSide * kSide : 0; }
    void look_up(std::uint32_t id, float* to) const override {
        for (const Matrix& own : own_) {
            copy_row(own, id, to);
            to += kSide * kSide;
        }
    }

private:
    void load_layers(Loader& loader, const ModelWeights& weights) override;
    void reserve(Arena& arena) override;
    void time_mix(int index) override;
    void channel_mix(int index) override;
    void load_deep(Loader& loader, const DeepEmbed& from, DeviceLayer7& layer);
    bool is_deep() const { return spec_.generation == Generation::v7a; }

    std::vector<DeviceLayer7> layers_;
    float *r_ = nullptr, *k_ = nullptr, *v_ = nullptr, *first_v_ = nullptr;      // [rows, D]
    float *w_ = nullptr, *a_ = nullptr, *share_ = nullptr, *gate_ = nullptr;     // [rows, D]
    Activations low_w_{}, low_a_{}, low_v_{}, low_g_{};                          // [rows, rank]
    Activations y_{};                                                            // [rows, D]
    // Of RWKV-7a:
    std::vector<Matrix> own_;                                                    // on the host
    const float* zeros_ = nullptr;                                               // [D]
    Activations embedded_{}, turned_{};                                          // [rows, D], [rows, 32]
    float *inner_ = nullptr, *added_own_ = nullptr, *scale_ = nullptr;           // 32, 32 * 32, F
};

void Network7::load_deep(Loader& loader, const DeepEmbed& from, DeviceLayer7& layer) {
    layer.from_emb = loader.matrix(from.from_emb);
    layer.in = loader.matrix(from.in);
    layer.out = loader.matrix(from.out);
    layer.base = loader.vector(from.base);
    own_.push_back(from.own);
}

void Network7::load_layers(Loader& loader, const ModelWeights& weights) {
    layers_.clear();
    own_.clear();
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
        if (from.deep_embed) load_deep(loader, *from.deep_embed, layer);
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
    if (!is_deep()) return;
    zeros_ = arena.take<float>(spec_.width);
    embedded_ = activations(arena, width_);
    turned_ = activations(arena, kSide);
    inner_ = floats(arena, kSide);
    added_own_ = floats(arena, kSide * kSide);
    scale_ = floats(arena, spec_.hidden);
}

void Network7::time_mix(int index) {
    const DeviceLayer7& layer = layers_[static_cast<std::size_t>(index)];
    if (index == 0 && is_deep()) {
        check(as_activations(x_, batch_.tokens, width_, embedded_, stream_), "computing");
    }
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
    const Product key = product(layer.ffn_key, mixed_[0], hidden_, Finish::squared_relu);
    if (is_deep()) {
        // Nothing of the token before: the second mix is what is normalized.
        shift(layer.ln2, {layer.ffn_mix_k, zeros_}, ffn_shift(index));
        multiply_all({key, product(layer.from_emb, embedded_, added_own_), product(layer.in, mixed_[1], inner_)});
        check(turn(inner_, looked_up_ + static_cast<std::size_t>(index) * kSide * kSide,
                   static_cast<int>(looked_up()), added_own_, batch_.tokens, turned_, stream_), "computing");
        multiply_all({product(layer.out, turned_, scale_)});
        check(scale_hidden(hidden_, scale_, layer.base, batch_.tokens, static_cast<int>(spec_.hidden), stream_),
              "computing");
    } else {
        shift(layer.ln2, {layer.ffn_mix_k}, ffn_shift(index));
        multiply_all({key});
    }
    add_hidden(layer.ffn_value, nullptr);
}

}  // namespace

std::unique_ptr<Network> make_network7(const Spec& spec) { return std::make_unique<Network7>(spec); }

}  // namespace rwkv::cuda
