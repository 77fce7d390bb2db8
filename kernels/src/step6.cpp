#include <algorithm>

#include "gated_step.h"

namespace rwkv {
namespace {

constexpr std::size_t kMixes = 5;
constexpr std::size_t kChannels = 64;  // per item of a loop

class Step6 : public GatedStep {
public:
    Step6(const Spec& spec, const ModelWeights& weights, const Layers<Layer6>& layers,
          const Kernels& kernels, ThreadPool& pool)
        : GatedStep(spec, weights, kernels, pool, kMixes), layers_(layers) {}

private:
    void reserve(std::size_t rows) override;
    void time_mix(std::size_t index) override;
    void channel_mix(std::size_t index) override {
        mix_channels(index, layers_[index].ln2, layers_[index].ffn);
    }
    void mix_by_token(const Layer6& layer, std::size_t index);

    const Layers<Layer6>& layers_;
    Vector low_mix_;  // [rows, 5 rank_mix]
    Vector shares_;   // [rows, 5 D]
    Vector low_w_;    // [rows, rank_w]
    Vector w_;        // [rows, A]
};

void Step6::reserve(std::size_t rows) {
    GatedStep::reserve(rows);
    low_mix_.resize(rows * kMixes * spec_.rank_mix);
    shares_.resize(rows * kMixes * spec_.width);
    low_w_.resize(rows * spec_.rank_w);
    w_.resize(rows * spec_.att_width);
}

// mixed(0) to mixed(4) = normal_ shifted by shares that depend on the token and the one before.
void Step6::mix_by_token(const Layer6& layer, std::size_t index) {
    const std::size_t d = spec_.width;
    const std::size_t rank = spec_.rank_mix;
    const Vector* first[] = {&layer.mix_x};
    shift(att_shift(index), first, 1);
    const Product low{&layer.mix_w1, mixed(0), d, low_mix_.data(), kMixes * rank, Finish::tanh};
    multiply(&low, 1);
    const Vector* mixes[] = {&layer.mix_w, &layer.mix_k, &layer.mix_v, &layer.mix_r, &layer.mix_g};
    Product products[kMixes];
    for (std::size_t i = 0; i < kMixes; ++i) {
        products[i] = {&layer.mix_w2, &low_mix_[i * rank], kMixes * rank, shares_.data(), kMixes * d,
                       Finish::none};
    }
    const unsigned char* inputs[kMixes];
    round(products, kMixes, inputs);
    const std::size_t blocks = divide_up(d, kChannels);
    pool_.run(kMixes * blocks, [&](std::size_t item) {
        const std::size_t i = item / blocks;
        const std::size_t c = item % blocks * kChannels;
        const std::size_t count = std::min(kChannels, d - c);
        multiply_rows(products[i], inputs[i], i * d + c, i * d + c + count);
        const float* usual = mixes[i]->data() + c;
        for (std::size_t t = 0; t < rows_; ++t) {
            float* share = &shares_[(t * kMixes + i) * d + c];
            for (std::size_t j = 0; j < count; ++j) share[j] += usual[j];
            kernels_.token_shift(&normal_[t * d + c], previous(t, att_shift(index)) + c, share, count,
                                 mixed(i) + t * d + c);
        }
    });
    keep(att_shift(index));
}

void Step6::time_mix(std::size_t index) {
    const Layer6& layer = layers_[index];
    const MatrixTimeMix& att = layer.att;
    const std::size_t d = spec_.width;
    const std::size_t a = spec_.att_width;
    const std::size_t n = spec_.head_size;
    normalize(layer.ln1);
    mix_by_token(layer, index);
    const Product products[] = {
        {&layer.decay_w1, mixed(0), d, low_w_.data(), spec_.rank_w, Finish::tanh},
        {&att.key, mixed(1), d, k_.data(), a, Finish::none},
        {&att.value, mixed(2), d, v_.data(), a, Finish::none},
        {&att.receptance, mixed(3), d, r_.data(), a, Finish::none},
        {&*att.gate, mixed(4), d, gate_.data(), a, Finish::silu},
    };
    multiply(products, kMixes);
    const Product low{&layer.decay_w2, low_w_.data(), spec_.rank_w, w_.data(), a, Finish::none};
    const unsigned char* input;
    round(&low, 1, &input);
    pool_.run(spec_.heads(), [&](std::size_t head) {
        const std::size_t c = head * n;
        multiply_rows(low, input, c, c + n);
        for (std::size_t t = 0; t < rows_; ++t) {
            kernels_.decay6(&w_[t * a + c], &layer.decay[c], n);
        }
        mix_head(index, head, att, w_.data(), a);
    });
    add_output(att.output);
}

}  // namespace

std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights,
                                const Layers<Layer6>& layers, const Kernels& kernels,
                                ThreadPool& pool) {
    return std::make_unique<Step6>(spec, weights, layers, kernels, pool);
}

}  // namespace rwkv
