#include <algorithm>

#include "gated_step.h"

namespace rwkv {
namespace {

constexpr std::size_t kChannels = 128;  // per item of a loop

class Step4 : public GatedStep {
public:
    Step4(const Spec& spec, const ModelWeights& weights, const Layers<Layer4>& layers,
          const Kernels& kernels, ThreadPool& pool)
        : GatedStep(spec, weights, kernels, pool, 3), layers_(layers) {}

private:
    void time_mix(std::size_t index) override;
    void channel_mix(std::size_t index) override {
        mix_channels(index, layers_[index].ln2, layers_[index].ffn);
    }
    void average(const Layer4& layer, std::size_t index, std::size_t first, std::size_t count);

    const Layers<Layer4>& layers_;
};

void Step4::time_mix(std::size_t index) {
    const Layer4& layer = layers_[index];
    const std::size_t d = spec_.width;
    const std::size_t a = spec_.att_width;
    normalize(layer.ln1);
    const Vector* mixes[] = {&layer.mix_k, &layer.mix_v, &layer.mix_r};
    shift(att_shift(index), mixes, 3);
    keep(att_shift(index));
    const Product products[] = {
        {&layer.key, mixed(0), d, k_.data(), a, Finish::none},
        {&layer.value, mixed(1), d, v_.data(), a, Finish::none},
        {&layer.receptance, mixed(2), d, r_.data(), a, Finish::sigmoid},
    };
    multiply(products, 3);
    pool_.run(divide_up(a, kChannels), [&](std::size_t block) {
        const std::size_t first = block * kChannels;
        average(layer, index, first, std::min(kChannels, a - first));
    });
    add_output(layer.output);
}

// y_ for `count` channels from `first`, for all rows.
void Step4::average(const Layer4& layer, std::size_t index, std::size_t first, std::size_t count) {
    const std::size_t a = spec_.att_width;
    for (const Run& run : *runs_) {
        float* numerator = run.state + sums(index) + first;
        for (std::size_t t = run.first; t < run.first + run.count; ++t) {
            const std::size_t at = t * a + first;
            kernels_.wkv4({count, &k_[at], &v_[at], &layer.decay[first], &layer.first[first]},
                          numerator, numerator + a, numerator + 2 * a, &y_[at]);
            for (std::size_t i = at; i < at + count; ++i) y_[i] *= r_[i];
        }
    }
}

}  // namespace

std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights,
                                const Layers<Layer4>& layers, const Kernels& kernels,
                                ThreadPool& pool) {
    return std::make_unique<Step4>(spec, weights, layers, kernels, pool);
}

}  // namespace rwkv
