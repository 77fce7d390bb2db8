#include <variant>

#include "gated_network.h"

namespace rwkv::cuda {
namespace {

struct DeviceLayer4 {
    NormVectors ln1, ln2;
    const float *mix_k, *mix_v, *mix_r;
    Vectors4 vectors;
    DeviceMatrix receptance, key, value, output;
    DeviceChannelMix ffn;
};

class Network4 : public GatedNetwork {
public:
    explicit Network4(const Spec& spec) : GatedNetwork(spec) {}

private:
    void load_layers(Loader& loader, const ModelWeights& weights) override {
        layers_.clear();
        for (const Layer4& from : std::get<Layers<Layer4>>(weights.layers)) {
            DeviceLayer4 layer{};
            layer.ln1 = loader.norm(from.ln1);
            layer.ln2 = loader.norm(from.ln2);
            layer.mix_k = loader.vector(from.mix_k);
            layer.mix_v = loader.vector(from.mix_v);
            layer.mix_r = loader.vector(from.mix_r);
            layer.vectors.decay = loader.vector(from.decay);
            layer.vectors.first = loader.vector(from.first);
            layer.receptance = loader.matrix(from.receptance);
            layer.key = loader.matrix(from.key);
            layer.value = loader.matrix(from.value);
            layer.output = loader.matrix(from.output);
            layer.ffn = load_channel_mix(loader, from.ffn);
            layers_.push_back(layer);
        }
    }

    void time_mix(int index) override {
        const DeviceLayer4& layer = layers_[static_cast<std::size_t>(index)];
        shift(layer.ln1, {layer.mix_k, layer.mix_v, layer.mix_r}, att_shift(index));
        multiply_all({product(layer.key, mixed_[0], k_), product(layer.value, mixed_[1], v_),
                      product(layer.receptance, mixed_[2], r_, Finish::sigmoid)});
        check(mix_channels4(batch_, layer.vectors, {r_, k_, v_}, static_cast<int>(spec_.att_width),
                            sums(index), y_, stream_), "computing");
        multiply_all({product(layer.output, y_, x_, Finish::add)});
    }

    void channel_mix(int index) override {
        const DeviceLayer4& layer = layers_[static_cast<std::size_t>(index)];
        mix_channels(index, layer.ln2, layer.ffn);
    }

    std::vector<DeviceLayer4> layers_;
};

}  // namespace

std::unique_ptr<Network> make_network4(const Spec& spec) { return std::make_unique<Network4>(spec); }

}  // namespace rwkv::cuda
