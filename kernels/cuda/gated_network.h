// What RWKV-4, 5 and 6 share on the device.
#pragma once

#include "heads5.cuh"
#include "network.h"

namespace rwkv::cuda {

struct DeviceChannelMix {
    const float *mix_k, *mix_r;
    DeviceMatrix key, receptance;
    Value value;
};

class GatedNetwork : public Network {
protected:
    using Network::Network;

    static DeviceChannelMix load_channel_mix(Loader& loader, const GatedChannelMix& from);
    void reserve(Arena& arena) override;
    // The whole channel mix of a layer.
    void mix_channels(int layer, const NormVectors& norm, const DeviceChannelMix& ffn);

    float *r_ = nullptr, *k_ = nullptr, *v_ = nullptr;  // [rows, A]
    float* gate_ = nullptr;  // [rows, A] in the time mix, [rows, D] in the channel mix
    Activations y_{};        // [rows, A]
};

// The matrices and vectors around the state of RWKV-5 and 6.
struct DeviceTimeMix {
    DeviceMatrix receptance, key, value, gate, output;  // no gate in RWKV-5.0
    Vectors5 vectors;
};

DeviceTimeMix load_time_mix(Loader& loader, const MatrixTimeMix& from, const Vector& decay);

}  // namespace rwkv::cuda
