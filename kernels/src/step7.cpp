#include <algorithm>
#include <cmath>
#include <cstring>

#include "elements.h"
#include "step.h"

namespace rwkv {
namespace {

class Step7 : public Step {
public:
    Step7(const Spec& spec, const ModelWeights& weights, const Layers<Layer7>& layers,
          const Kernels& kernels, ThreadPool& pool)
        : Step(spec, weights, kernels, pool, 6), layers_(layers) {}

private:
    void reserve(std::size_t rows) override;
    void time_mix(std::size_t index) override;
    void channel_mix(std::size_t index) override;
    void mix_heads(const Layer7& layer, std::size_t index, std::size_t head, const Product* low,
                   const unsigned char* const* inputs);
    void ask_for_head(std::size_t index, std::size_t head, const Product* low) const;
    void scale_hidden(const DeepEmbed& deep);

    const Layers<Layer7>& layers_;
    Vector r_, k_, v_, first_v_, w_, a_, gate_;  // [rows, D]
    Vector share_, kk_, kk_a_, y_, out_;         // [rows, D]
    Vector low_w_, low_a_, low_v_, low_g_;       // [rows, rank]
    // Of DeepEmbed:
    Vector embedded_;        // [rows, D]: the normalized embeddings
    Vector own_;             // [rows, 32 * 32]: what a token's own matrix gets from its embedding
    Vector inner_, turned_;  // [rows, 32]
    Vector scale_;           // [rows, F]
};

void Step7::reserve(std::size_t rows) {
    Step::reserve(rows);
    const std::size_t d = spec_.width;
    for (Vector* buffer : {&r_, &k_, &v_, &first_v_, &w_, &a_, &gate_, &share_, &kk_, &kk_a_, &y_,
                           &out_}) {
        buffer->resize(rows * d);
    }
    low_w_.resize(rows * spec_.rank_w);
    low_a_.resize(rows * spec_.rank_a);
    low_v_.resize(rows * spec_.rank_v);
    low_g_.resize(rows * spec_.rank_g);
    if (spec_.generation != Generation::v7a) return;
    embedded_.resize(rows * d);
    own_.resize(rows * DeepEmbed::kSide * DeepEmbed::kSide);
    inner_.resize(rows * DeepEmbed::kSide);
    turned_.resize(rows * DeepEmbed::kSide);
    scale_.resize(rows * spec_.hidden);
}

void Step7::time_mix(std::size_t index) {
    const Layer7& layer = layers_[index];
    const std::size_t d = spec_.width;
    if (index == 0 && layer.deep_embed) embedded_ = x_;
    normalize(layer.ln1);
    const Vector* mixes[] = {&layer.mix_r, &layer.mix_k, &layer.mix_v,
                             &layer.mix_w, &layer.mix_a, &layer.mix_g};
    shift(att_shift(index), mixes, 6);
    keep(att_shift(index));
    const Product products[] = {
        {&layer.receptance, mixed(0), d, r_.data(), d, Finish::none},
        {&layer.key, mixed(1), d, k_.data(), d, Finish::none},
        {&layer.value, mixed(2), d, v_.data(), d, Finish::none},
        {&layer.w1, mixed(3), d, low_w_.data(), spec_.rank_w, Finish::tanh},
        {&layer.a1, mixed(4), d, low_a_.data(), spec_.rank_a, Finish::none},
        {&layer.g1, mixed(5), d, low_g_.data(), spec_.rank_g, Finish::sigmoid},
        {&layer.v1, mixed(2), d, low_v_.data(), spec_.rank_v, Finish::none},
    };
    multiply(products, index == 0 ? 6 : 7);
    const Product low[] = {
        {&layer.w2, low_w_.data(), spec_.rank_w, w_.data(), d, Finish::none},
        {&layer.a2, low_a_.data(), spec_.rank_a, a_.data(), d, Finish::none},
        {&layer.g2, low_g_.data(), spec_.rank_g, gate_.data(), d, Finish::none},
        {&layer.v2, low_v_.data(), spec_.rank_v, share_.data(), d, Finish::none},
    };
    const unsigned char* inputs[4];
    round(low, index == 0 ? 3 : 4, inputs);
    announce(spec_.heads(), [&](std::size_t head) { return row_of(layer.w2, head * spec_.head_size); });
    pool_.run(spec_.heads(),
              [&](std::size_t head) {
                  if (head + 1 < spec_.heads()) ask_for_head(index, head + 1, low);
                  mix_heads(layer, index, head, low, inputs);
              });
    const Product output{&layer.output, y_.data(), d, out_.data(), d, Finish::add_to_x};
    multiply(&output, 1);
}

// What a head reads are runs of a few thousand bytes, too short for the hardware to learn.
void Step7::ask_for_head(std::size_t index, std::size_t head, const Product* low) const {
    const std::size_t n = spec_.head_size;
    const std::size_t c = head * n;
    for (std::size_t i = 0; i < (index == 0 ? 3 : 4); ++i) {
        const unsigned char* rows = row_of(*low[i].matrix, c);
        ask_for(rows, static_cast<std::size_t>(row_of(*low[i].matrix, c + n) - rows));
    }
    ask_for(runs_->front().state + sums(index) + c * n, n * n * sizeof(float));
}

// Everything between the projections for the channels of one head, for all rows.
void Step7::mix_heads(const Layer7& layer, std::size_t index, std::size_t head, const Product* low,
                      const unsigned char* const* inputs) {
    const std::size_t d = spec_.width;
    const std::size_t n = spec_.head_size;
    const std::size_t c = head * n;  // the head's first channel
    for (std::size_t i = 0; i < (index == 0 ? 3 : 4); ++i) multiply_rows(low[i], inputs[i], c, c + n);
    for (const Run& run : *runs_) {
        float* wkv = run.state + sums(index) + c * n;
        for (std::size_t t = run.first; t < run.first + run.count; ++t) {
            const std::size_t at = t * d + c;
            float* k = &k_[at];
            float* v = &v_[at];
            float* a = &a_[at];
            float* kk = &kk_[at];
            float* y = &y_[at];
            kernels_.decay7(&w_[at], &layer.w0[c], n);
            kernels_.sigmoid(a, &layer.a0[c], n);
            if (index == 0) {
                std::memcpy(&first_v_[at], v, n * sizeof(float));
            } else {
                float* share = &share_[at];
                kernels_.sigmoid(share, &layer.v0[c], n);
                for (std::size_t i = 0; i < n; ++i) v[i] += (first_v_[at + i] - v[i]) * share[i];
            }
            float squares = 0;
            for (std::size_t i = 0; i < n; ++i) {
                kk[i] = k[i] * layer.k_k[c + i];
                squares += kk[i] * kk[i];
            }
            const float length = std::max(std::sqrt(squares), 1e-12f);
            float bonus = 0;
            for (std::size_t i = 0; i < n; ++i) {
                kk[i] /= length;
                kk_a_[at + i] = kk[i] * a[i];
                k[i] *= 1 + (a[i] - 1) * layer.k_a[c + i];
                bonus += r_[at + i] * k[i] * layer.r_k[c + i];
            }
            kernels_.wkv7({n, &r_[at], &w_[at], k, v, kk, &kk_a_[at]}, wkv, y);
            kernels_.layer_norm(y, &layer.ln_x.weight[c], &layer.ln_x.bias[c], n,
                                spec_.group_norm_eps, y);
            for (std::size_t i = 0; i < n; ++i) y[i] = (y[i] + bonus * v[i]) * gate_[at + i];
        }
    }
}

void Step7::channel_mix(std::size_t index) {
    const Layer7& layer = layers_[index];
    const std::size_t d = spec_.width;
    normalize(layer.ln2);
    const Vector* mixes[] = {&layer.ffn_mix_k};
    shift(ffn_shift(index), mixes, 1);
    keep(ffn_shift(index));
    const Product key{&layer.ffn_key, mixed(0),           d,
                      hidden_.data(), spec_.hidden, Finish::squared_relu};
    multiply(&key, 1);
    if (layer.deep_embed) scale_hidden(*layer.deep_embed);
    add_hidden(layer.ffn_value);
}

// hidden_ *= base + out * (in * normal_ * own), where own is a matrix for every token.
void Step7::scale_hidden(const DeepEmbed& deep) {
    constexpr std::size_t kSide = DeepEmbed::kSide;
    const std::size_t d = spec_.width;
    const std::size_t f = spec_.hidden;
    const Product products[] = {
        {&deep.from_emb, embedded_.data(), d, own_.data(), kSide * kSide, Finish::none},
        {&deep.in, normal_.data(), d, inner_.data(), kSide, Finish::none},
    };
    multiply(products, 2);
    for_rows(rows_, [&](std::size_t t) {
        float own[kSide * kSide];
        copy_row(deep.own, ids_[t], own);
        float* turned = &turned_[t * kSide];
        std::fill_n(turned, kSide, 0.0f);
        for (std::size_t i = 0; i < kSide; ++i) {
            const float* added = &own_[(t * kSide + i) * kSide];
            const float inner = inner_[t * kSide + i];
            for (std::size_t j = 0; j < kSide; ++j) turned[j] += inner * (own[i * kSide + j] + added[j]);
        }
    });
    const Product out{&deep.out, turned_.data(), kSide, scale_.data(), f, Finish::none};
    multiply(&out, 1);
    for_rows(rows_, [&](std::size_t t) {
        for (std::size_t i = 0; i < f; ++i) hidden_[t * f + i] *= scale_[t * f + i] + deep.base[i];
    });
}

}  // namespace

std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights,
                                const Layers<Layer7>& layers, const Kernels& kernels,
                                ThreadPool& pool) {
    return std::make_unique<Step7>(spec, weights, layers, kernels, pool);
}

}  // namespace rwkv
