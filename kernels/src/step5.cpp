#include "gated_step.h"

namespace rwkv {
namespace {

class Step5 : public GatedStep {
public:
    Step5(const Spec& spec, const ModelWeights& weights, const Layers<Layer5>& layers,
          const Kernels& kernels, ThreadPool& pool)
        : GatedStep(spec, weights, kernels, pool, 4), layers_(layers) {}

private:
    void time_mix(std::size_t index) override;
    void channel_mix(std::size_t index) override {
        mix_channels(index, layers_[index].ln2, layers_[index].ffn);
    }

    const Layers<Layer5>& layers_;
};

void Step5::time_mix(std::size_t index) {
    const Layer5& layer = layers_[index];
    const MatrixTimeMix& att = layer.att;
    const std::size_t d = spec_.width;
    const std::size_t a = spec_.att_width;
    const std::size_t count = att.gate ? 4 : 3;
    normalize(layer.ln1);
    const Vector* mixes[] = {&layer.mix_k, &layer.mix_v, &layer.mix_r, &layer.mix_g};
    shift(att_shift(index), mixes, count);
    keep(att_shift(index));
    const Product products[] = {
        {&att.key, mixed(0), d, k_.data(), a, Finish::none},
        {&att.value, mixed(1), d, v_.data(), a, Finish::none},
        {&att.receptance, mixed(2), d, r_.data(), a, Finish::none},
        {att.gate ? &*att.gate : nullptr, mixed(3), d, gate_.data(), a, Finish::silu},
    };
    multiply(products, count);
    pool_.run(spec_.heads(),
              [&](std::size_t head) { mix_head(index, head, att, layer.decay.data(), 0); });
    add_output(att.output);
}

}  // namespace

std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights,
                                const Layers<Layer5>& layers, const Kernels& kernels,
                                ThreadPool& pool) {
    return std::make_unique<Step5>(spec, weights, layers, kernels, pool);
}

}  // namespace rwkv
