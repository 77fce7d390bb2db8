#include "step7.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "elements.h"

namespace rwkv {
namespace {

constexpr float kLayerNormEps = 1e-5f;
constexpr std::size_t kBlockRows = 32;    // of a matrix, per item of a loop
constexpr std::size_t kSumColumns = 128;  // of ffn.value

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

}  // namespace

// y [rows, y_stride] = x [rows, x_stride] * matrix^T, then `finish` over the new columns.
struct Step::Product {
    enum class Finish { none, tanh, sigmoid, squared_relu, add_to_x };

    const Matrix* matrix;
    const float* x;
    std::size_t x_stride;
    float* y;
    std::size_t y_stride;
    Finish finish;
};

Step::Step(const Spec& spec, const ModelWeights& weights, const Kernels& kernels, ThreadPool& pool)
    : spec_(spec), weights_(weights), kernels_(kernels), pool_(pool), zeros_(spec.rank_g) {}

void Step::reserve(std::size_t rows) {
    if (run_of_.size() >= rows) return;
    const std::size_t d = spec_.width;
    for (Vector* buffer : {&x_, &normal_, &r_, &k_, &v_, &first_v_, &w_, &a_, &gate_, &share_, &kk_,
                           &kk_a_, &y_, &out_}) {
        buffer->resize(rows * d);
    }
    mixed_.resize(6 * rows * d);
    low_w_.resize(rows * spec_.rank_w);
    low_a_.resize(rows * spec_.rank_a);
    low_v_.resize(rows * spec_.rank_v);
    low_g_.resize(rows * spec_.rank_g);
    hidden_.resize(rows * spec_.hidden);
    active_.resize(rows * spec_.hidden);
    active_starts_.resize(rows * (parts() + 1));
    parts_.resize(parts() * rows * d);
    // The last, because its size says that the others are large enough.
    run_of_.resize(rows);
}

void Step::forward(const std::uint32_t* ids, std::size_t rows, const std::vector<Run>& runs) {
    reserve(rows);
    rows_ = rows;
    runs_ = &runs;
    for (std::size_t run = 0; run < runs.size(); ++run) {
        std::fill_n(run_of_.begin() + runs[run].first, runs[run].count, run);
    }
    embed(ids);
    for (std::size_t index = 0; index < spec_.layers; ++index) {
        time_mix(index);
        channel_mix(index);
    }
    project(runs);
}

void Step::embed(const std::uint32_t* ids) {
    const std::size_t d = spec_.width;
    pool_.run(rows_, [&](std::size_t t) {
        const Matrix& emb = weights_.emb;
        const unsigned char* row = row_of(emb, ids[t]);
        float* x = &x_[t * d];
        for (std::size_t i = 0; i < d; ++i) x[i] = load(row, i, emb.weights);
        kernels_.layer_norm(x, weights_.ln0_weight.data(), weights_.ln0_bias.data(), d,
                            kLayerNormEps, x);
    });
}

void Step::normalize(const Vector& weight, const Vector& bias) {
    const std::size_t d = spec_.width;
    pool_.run(rows_, [&](std::size_t t) {
        kernels_.layer_norm(&x_[t * d], weight.data(), bias.data(), d, kLayerNormEps,
                            &normal_[t * d]);
    });
}

// The normalized activations of the token before `row`: in the state where the run begins.
const float* Step::previous(std::size_t run, std::size_t row, std::size_t state_offset) const {
    const Run& own = (*runs_)[run];
    return row == own.first ? own.state + state_offset : &normal_[(row - 1) * spec_.width];
}

// mixed_[i] = normal_ shifted by mixes[i]; the last normal_ of every run goes into its state.
void Step::shift(std::size_t state_offset, const Vector* const* mixes, std::size_t count) {
    const std::size_t d = spec_.width;
    pool_.run(rows_, [&](std::size_t t) {
        const float* before = previous(run_of_[t], t, state_offset);
        for (std::size_t i = 0; i < count; ++i) {
            kernels_.token_shift(&normal_[t * d], before, mixes[i]->data(), d,
                                 &mixed_[(i * rows_ + t) * d]);
        }
    });
    for (const Run& run : *runs_) {
        std::memcpy(run.state + state_offset, &normal_[(run.first + run.count - 1) * d],
                    d * sizeof(float));
    }
}

// One loop over blocks of rows of all the matrices.
void Step::multiply(const Product* products, std::size_t count) {
    std::size_t blocks = 0;
    for (std::size_t p = 0; p < count; ++p) blocks += divide_up(products[p].matrix->rows, kBlockRows);
    pool_.run(blocks, [&](std::size_t block) {
        const Product* p = products;
        for (std::size_t own; block >= (own = divide_up(p->matrix->rows, kBlockRows)); ++p) {
            block -= own;
        }
        const std::size_t first = block * kBlockRows;
        const std::size_t last = std::min(first + kBlockRows, p->matrix->rows);
        kernels_.matmul(*p->matrix, first, last, p->x, p->x_stride, rows_, p->y, p->y_stride);
        for (std::size_t t = 0; t < rows_ && p->finish != Product::Finish::none; ++t) {
            float* y = p->y + t * p->y_stride;
            switch (p->finish) {
                case Product::Finish::tanh:
                    for (std::size_t i = first; i < last; ++i) y[i] = std::tanh(y[i]);
                    break;
                case Product::Finish::sigmoid:
                    kernels_.sigmoid(y + first, zeros_.data(), last - first);
                    break;
                case Product::Finish::squared_relu:
                    // A NaN passes, so that a broken model is noticed.
                    for (std::size_t i = first; i < last; ++i) y[i] = y[i] < 0 ? 0 : y[i] * y[i];
                    break;
                case Product::Finish::add_to_x:
                    for (std::size_t i = first; i < last; ++i) x_[t * spec_.width + i] += y[i];
                    break;
                case Product::Finish::none: break;
            }
        }
    });
}

void Step::time_mix(std::size_t index) {
    using Finish = Product::Finish;
    const Layer& layer = weights_.layers[index];
    const std::size_t d = spec_.width;
    normalize(layer.ln1_weight, layer.ln1_bias);
    const Vector* mixes[] = {&layer.x_r, &layer.x_k, &layer.x_v, &layer.x_w, &layer.x_a, &layer.x_g};
    shift(index * spec_.layer_state(), mixes, 6);
    const auto mixed = [&](std::size_t i) { return &mixed_[i * rows_ * d]; };
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
    pool_.run(spec_.heads(), [&](std::size_t head) { mix_heads(layer, index, head); });
    const Product output{&layer.output, y_.data(), d, out_.data(), d, Finish::add_to_x};
    multiply(&output, 1);
}

// Everything between the projections for the channels of one head, for all rows.
void Step::mix_heads(const Layer& layer, std::size_t index, std::size_t head) {
    const std::size_t d = spec_.width;
    const std::size_t n = spec_.head_size;
    const std::size_t c = head * n;  // the head's first channel
    const auto low = [&](const Matrix& matrix, const Vector& x, Vector& y) {
        kernels_.matmul(matrix, c, c + n, x.data(), matrix.columns, rows_, y.data(), d);
    };
    low(layer.w2, low_w_, w_);
    low(layer.a2, low_a_, a_);
    low(layer.g2, low_g_, gate_);
    if (index > 0) low(layer.v2, low_v_, share_);
    for (const Run& run : *runs_) {
        float* wkv = run.state + index * spec_.layer_state() + d + c * n;
        for (std::size_t t = run.first; t < run.first + run.count; ++t) {
            const std::size_t at = t * d + c;
            float* k = &k_[at];
            float* v = &v_[at];
            float* a = &a_[at];
            float* kk = &kk_[at];
            float* y = &y_[at];
            kernels_.decay(&w_[at], &layer.w0[c], n);
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
            kernels_.layer_norm(y, &layer.ln_x_weight[c], &layer.ln_x_bias[c], n,
                                spec_.group_norm_eps, y);
            for (std::size_t i = 0; i < n; ++i) y[i] = (y[i] + bonus * v[i]) * gate_[at + i];
        }
    }
}

void Step::channel_mix(std::size_t index) {
    const Layer& layer = weights_.layers[index];
    const std::size_t d = spec_.width;
    const std::size_t f = spec_.hidden;
    normalize(layer.ln2_weight, layer.ln2_bias);
    const Vector* mixes[] = {&layer.ffn_x_k};
    shift((index + 1) * spec_.layer_state() - d, mixes, 1);
    const Product key{&layer.ffn_key, mixed_.data(),        d, hidden_.data(), f,
                      Product::Finish::squared_relu};
    multiply(&key, 1);
    pool_.run(rows_, [&](std::size_t t) { find_active(t); });
    add_ffn(layer.ffn_value);
}

// Lists the hidden channels of `row` that are not zero, and where each part of them begins.
void Step::find_active(std::size_t row) {
    const std::size_t f = spec_.hidden;
    const float* hidden = &hidden_[row * f];
    std::uint32_t* active = &active_[row * f];
    std::size_t* starts = &active_starts_[row * (parts() + 1)];
    std::size_t count = 0;
    for (std::size_t part = 0; part < parts(); ++part) {
        starts[part] = count;
        for (std::size_t i = part * kPart; i < std::min((part + 1) * kPart, f); ++i) {
            active[count] = static_cast<std::uint32_t>(i);
            count += hidden[i] != 0;
        }
    }
    starts[parts()] = count;
    active_channels_.fetch_add(count, std::memory_order_relaxed);
}

// x_ += hidden_ * value, one part of the hidden channels at a time: memory is read in whole rows, and
// for all but the first token they come from the cache.
void Step::add_ffn(const Matrix& value) {
    const std::size_t d = spec_.width;
    const std::size_t f = spec_.hidden;
    pool_.run(parts(), [&](std::size_t part) {
        for (std::size_t t = 0; t < rows_; ++t) {
            const std::size_t* starts = &active_starts_[t * (parts() + 1) + part];
            kernels_.sum_rows(value, &active_[t * f + starts[0]], starts[1] - starts[0],
                              &hidden_[t * f], 0, d, &parts_[(part * rows_ + t) * d]);
        }
    });
    pool_.run(divide_up(d, kSumColumns), [&](std::size_t block) {
        const std::size_t first = block * kSumColumns;
        const std::size_t last = std::min(first + kSumColumns, d);
        for (std::size_t t = 0; t < rows_; ++t) {
            float sums[kSumColumns] = {};
            for (std::size_t part = 0; part < parts(); ++part) {
                const float* own = &parts_[(part * rows_ + t) * d];
                for (std::size_t c = first; c < last; ++c) sums[c - first] += own[c];
            }
            for (std::size_t c = first; c < last; ++c) x_[t * d + c] += sums[c - first];
        }
    });
}

void Step::project(const std::vector<Run>& runs) {
    const std::size_t d = spec_.width;
    const std::size_t v = spec_.vocabulary;
    std::vector<const Run*> wanted;
    for (const Run& run : runs) {
        if (run.logits == nullptr) continue;
        const float* last = &x_[(run.first + run.count - 1) * d];
        kernels_.layer_norm(last, weights_.ln_out_weight.data(), weights_.ln_out_bias.data(), d,
                            kLayerNormEps, &normal_[wanted.size() * d]);
        wanted.push_back(&run);
    }
    if (wanted.empty()) return;
    const std::size_t block_rows = 64;
    pool_.run(divide_up(v, block_rows), [&](std::size_t block) {
        const std::size_t first = block * block_rows;
        const std::size_t last = std::min(first + block_rows, v);
        float logits[kMaxRows * block_rows];  // [wanted, block_rows]
        // The kernel writes y[row] for rows from `first`, hence the shifted start.
        Matrix part = weights_.head;
        part.data = row_of(weights_.head, first);
        part.rows = last - first;
        kernels_.matmul(part, 0, last - first, normal_.data(), d, wanted.size(), logits, block_rows);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            std::memcpy(wanted[i]->logits + first, logits + i * block_rows,
                        (last - first) * sizeof(float));
        }
    });
}

}  // namespace rwkv
