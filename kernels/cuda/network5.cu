#include <variant>

#include "gated_network.h"

namespace rwkv::cuda {
namespace {

struct DeviceLayer5 {
    NormVectors ln1, ln2;
    const float *mix_k, *mix_v, *mix_r, *mix_g;  // no mix_g without a gate
    DeviceTimeMix att;
    DeviceChannelMix ffn;
};

class Network5 : public GatedNetwork {
public:
    explicit Network5(const Spec& spec) : GatedNetwork(spec) { check_heads(spec); }

private:
    void load_layers(Loader& loader, const ModelWeights& weights) override {
        layers_.clear();
        for (const Layer5& from : std::get<Layers<Layer5>>(weights.layers)) {
            DeviceLayer5 layer{};
            layer.ln1 = loader.norm(from.ln1);
            layer.ln2 = loader.norm(from.ln2);
            layer.mix_k = loader.vector(from.mix_k);
            layer.mix_v = loader.vector(from.mix_v);
            layer.mix_r = loader.vector(from.mix_r);
            if (from.att.gate) layer.mix_g = loader.vector(from.mix_g);
            layer.att = load_time_mix(loader, from.att, from.decay);
            layer.ffn = load_channel_mix(loader, from.ffn);
            layers_.push_back(layer);
        }
    }

    void time_mix(int index) override {
        const DeviceLayer5& layer = layers_[static_cast<std::size_t>(index)];
        const DeviceTimeMix& att = layer.att;
        const bool gated = spec_.generation != Generation::v5_0;
        const Product k = product(att.key, mixed_[0], k_);
        const Product v = product(att.value, mixed_[1], v_);
        const Product r = product(att.receptance, mixed_[2], r_);
        if (gated) {
            shift(layer.ln1, {layer.mix_k, layer.mix_v, layer.mix_r, layer.mix_g}, att_shift(index));
            multiply_all({k, v, r, product(att.gate, mixed_[3], gate_, Finish::silu)});
        } else {
            shift(layer.ln1, {layer.mix_k, layer.mix_v, layer.mix_r}, att_shift(index));
            multiply_all({k, v, r});
        }
        check(mix_heads5(batch_, att.vectors, {r_, k_, v_, nullptr, gated ? gate_ : nullptr},
                         static_cast<int>(spec_.heads()), static_cast<int>(spec_.head_size),
                         spec_.group_norm_eps, sums(index), y_, stream_), "computing");
        multiply_all({product(att.output, y_, x_, Finish::add)});
    }

    void channel_mix(int index) override {
        const DeviceLayer5& layer = layers_[static_cast<std::size_t>(index)];
        mix_channels(index, layer.ln2, layer.ffn);
    }

    std::vector<DeviceLayer5> layers_;
};

}  // namespace

std::unique_ptr<Network> make_network5(const Spec& spec) { return std::make_unique<Network5>(spec); }

}  // namespace rwkv::cuda
