#include "gated_network.h"

#include <algorithm>

namespace rwkv::cuda {

DeviceChannelMix GatedNetwork::load_channel_mix(Loader& loader, const GatedChannelMix& from) {
    DeviceChannelMix ffn{};
    ffn.mix_k = loader.vector(from.mix_k);
    ffn.mix_r = loader.vector(from.mix_r);
    ffn.key = loader.matrix(from.key);
    ffn.receptance = loader.matrix(from.receptance);
    ffn.value = loader.value(from.value);
    return ffn;
}

void GatedNetwork::reserve(Arena& arena) {
    for (float** buffer : {&r_, &k_, &v_}) *buffer = floats(arena, spec_.att_width);
    gate_ = floats(arena, std::max(spec_.att_width, spec_.width));
    y_ = activations(arena, static_cast<int>(spec_.att_width));
}

void GatedNetwork::mix_channels(int layer, const NormVectors& norm, const DeviceChannelMix& ffn) {
    shift(norm, {ffn.mix_k, ffn.mix_r}, ffn_shift(layer));
    multiply_all({product(ffn.key, mixed_[0], hidden_, Finish::squared_relu),
                  product(ffn.receptance, mixed_[1], gate_, Finish::sigmoid)});
    add_hidden(ffn.value, gate_);
}

DeviceTimeMix load_time_mix(Loader& loader, const MatrixTimeMix& from, const Vector& decay) {
    DeviceTimeMix att{};
    att.receptance = loader.matrix(from.receptance);
    att.key = loader.matrix(from.key);
    att.value = loader.matrix(from.value);
    if (from.gate) att.gate = loader.matrix(*from.gate);
    att.output = loader.matrix(from.output);
    att.vectors.decay = loader.vector(decay);
    att.vectors.first = loader.vector(from.first);
    att.vectors.ln_x = loader.norm(from.ln_x);
    return att;
}

}  // namespace rwkv::cuda
