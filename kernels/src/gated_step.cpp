#include "gated_step.h"

#include <algorithm>

namespace rwkv {

void GatedStep::reserve(std::size_t rows) {
    Step::reserve(rows);
    for (Vector* buffer : {&r_, &k_, &v_, &y_}) buffer->resize(rows * spec_.att_width);
    gate_.resize(rows * std::max(spec_.att_width, spec_.width));
    out_.resize(rows * spec_.width);
}

void GatedStep::mix_channels(std::size_t index, const Norm& norm, const GatedChannelMix& ffn) {
    const std::size_t d = spec_.width;
    normalize(norm);
    const Vector* mixes[] = {&ffn.mix_k, &ffn.mix_r};
    shift(ffn_shift(index), mixes, 2);
    keep(ffn_shift(index));
    const Product products[] = {
        {&ffn.key, mixed(0), d, hidden_.data(), spec_.hidden, Finish::squared_relu},
        {&ffn.receptance, mixed(1), d, gate_.data(), d, Finish::sigmoid},
    };
    multiply(products, 2);
    add_hidden(ffn.value, gate_.data());
}

void GatedStep::mix_head(std::size_t index, std::size_t head, const MatrixTimeMix& att,
                         const float* decay, std::size_t decay_stride) {
    const std::size_t a = spec_.att_width;
    const std::size_t n = spec_.head_size;
    const std::size_t c = head * n;  // the head's first channel
    for (const Run& run : *runs_) {
        float* wkv = run.state + sums(index) + c * n;
        for (std::size_t t = run.first; t < run.first + run.count; ++t) {
            const std::size_t at = t * a + c;
            float* y = &y_[at];
            kernels_.wkv5({n, &r_[at], decay + t * decay_stride + c, &k_[at], &v_[at], &att.first[c]},
                          wkv, y);
            kernels_.layer_norm(y, &att.ln_x.weight[c], &att.ln_x.bias[c], n, spec_.group_norm_eps, y);
            if (!att.gate) continue;
            for (std::size_t i = 0; i < n; ++i) y[i] *= gate_[at + i];
        }
    }
}

void GatedStep::add_output(const Matrix& output) {
    const Product product{&output, y_.data(), spec_.att_width, out_.data(), spec_.width,
                          Finish::add_to_x};
    multiply(&product, 1);
}

}  // namespace rwkv
