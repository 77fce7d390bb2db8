#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "elements.h"

namespace rwkv {
namespace {

constexpr float kLayerNormEps = 1e-5f;
constexpr std::size_t kMaxBlock = 128;
constexpr std::size_t kSumColumns = 128;  // of ffn.value
constexpr float kZeros[kMaxBlock] = {};

// Rows of a matrix per item of a loop. Every item of q8 and q4 rounds the activations anew.
std::size_t block_rows(const Matrix& matrix) {
    switch (matrix.weights) {
        case Weights::q8: return 64;
        case Weights::q4: return kMaxBlock;
        default: return 32;
    }
}

std::size_t blocks_of(const Matrix& matrix) { return divide_up(matrix.rows, block_rows(matrix)); }

template <class Product>
std::size_t count_blocks(const Product* products, std::size_t count) {
    std::size_t blocks = 0;
    for (std::size_t p = 0; p < count; ++p) blocks += blocks_of(*products[p].matrix);
    return blocks;
}

// The product that the `block`-th block of all belongs to; `block` becomes its number in there.
template <class Product>
const Product* find_product(const Product* products, std::size_t& block) {
    for (std::size_t own; block >= (own = blocks_of(*products->matrix)); ++products) block -= own;
    return products;
}

}  // namespace

Step::Step(const Spec& spec, const ModelWeights& weights, const Kernels& kernels, ThreadPool& pool,
           std::size_t mixes)
    : spec_(spec), weights_(weights), kernels_(kernels), pool_(pool), mixes_(mixes) {}

void Step::reserve(std::size_t rows) {
    const std::size_t d = spec_.width;
    x_.resize(rows * d);
    normal_.resize(rows * d);
    mixed_.resize(mixes_ * rows * d);
    hidden_.resize(rows * spec_.hidden);
    counts_.resize(parts());
    parts_.resize(parts() * rows * d);
}

void Step::forward(const std::uint32_t* ids, std::size_t rows, const std::vector<Run>& runs) {
    if (run_of_.size() < rows) {
        reserve(rows);
        // The last, because its size says that the others are large enough.
        run_of_.resize(rows);
    }
    loop_ = 0;
    rows_ = rows;
    ids_ = ids;
    runs_ = &runs;
    for (std::size_t run = 0; run < runs.size(); ++run) {
        std::fill_n(run_of_.begin() + runs[run].first, runs[run].count, run);
    }
    embed();
    for (std::size_t index = 0; index < spec_.layers; ++index) {
        time_mix(index);
        channel_mix(index);
    }
    project();
}

void Step::embed() {
    const std::size_t d = spec_.width;
    pool_.run(rows_, [&](std::size_t t) {
        float* x = &x_[t * d];
        copy_row(weights_.emb, ids_[t], x);
        kernels_.layer_norm(x, weights_.ln0.weight.data(), weights_.ln0.bias.data(), d,
                            kLayerNormEps, x);
    });
}

void Step::normalize(const Norm& norm) {
    const std::size_t d = spec_.width;
    pool_.run(rows_, [&](std::size_t t) {
        kernels_.layer_norm(&x_[t * d], norm.weight.data(), norm.bias.data(), d, kLayerNormEps,
                            &normal_[t * d]);
    });
}

const float* Step::previous(std::size_t row, std::size_t state_offset) const {
    const Run& own = (*runs_)[run_of_[row]];
    return row == own.first ? own.state + state_offset : &normal_[(row - 1) * spec_.width];
}

void Step::shift(std::size_t state_offset, const Vector* const* mixes, std::size_t count) {
    const std::size_t d = spec_.width;
    pool_.run(rows_, [&](std::size_t t) {
        for (std::size_t i = 0; i < count; ++i) {
            kernels_.token_shift(&normal_[t * d], previous(t, state_offset), mixes[i]->data(), d,
                                 mixed(i) + t * d);
        }
    });
}

void Step::keep(std::size_t state_offset) {
    const std::size_t d = spec_.width;
    for (const Run& run : *runs_) {
        std::memcpy(run.state + state_offset, &normal_[(run.first + run.count - 1) * d],
                    d * sizeof(float));
    }
}

void Step::multiply(const Product* products, std::size_t count) {
    const std::size_t blocks = count_blocks(products, count);
    announce(blocks, [&](std::size_t block) {
        const Matrix& matrix = *find_product(products, block)->matrix;
        return row_of(matrix, block * block_rows(matrix));
    });
    pool_.run(blocks, [&](std::size_t block) {
        const Product* p = find_product(products, block);
        const std::size_t first = block * block_rows(*p->matrix);
        const std::size_t last = std::min(first + block_rows(*p->matrix), p->matrix->rows);
        kernels_.matmul(*p->matrix, first, last, p->x, p->x_stride, rows_, p->y, p->y_stride);
        for (std::size_t t = 0; t < rows_ && p->finish != Finish::none; ++t) {
            float* y = p->y + t * p->y_stride;
            switch (p->finish) {
                case Finish::tanh:
                    for (std::size_t i = first; i < last; ++i) y[i] = std::tanh(y[i]);
                    break;
                case Finish::sigmoid: kernels_.sigmoid(y + first, kZeros, last - first); break;
                case Finish::silu: {
                    float shares[kMaxBlock];
                    std::copy(y + first, y + last, shares);
                    kernels_.sigmoid(shares, kZeros, last - first);
                    for (std::size_t i = first; i < last; ++i) y[i] *= shares[i - first];
                    break;
                }
                case Finish::squared_relu:
                    // A NaN passes, so that a broken model is noticed.
                    for (std::size_t i = first; i < last; ++i) y[i] = y[i] < 0 ? 0 : y[i] * y[i];
                    break;
                case Finish::add_to_x:
                    for (std::size_t i = first; i < last; ++i) x_[t * spec_.width + i] += y[i];
                    break;
                case Finish::none: break;
            }
        }
    });
}

// Lists the hidden channels of `row` that are not zero in a part, and returns their number.
std::size_t Step::find_active(std::size_t row, std::size_t part, std::uint32_t* active) const {
    const float* hidden = &hidden_[row * spec_.hidden];
    std::size_t count = 0;
    for (std::size_t i = part * kPart; i < std::min((part + 1) * kPart, spec_.hidden); ++i) {
        active[count] = static_cast<std::uint32_t>(i);
        count += hidden[i] != 0;
    }
    return count;
}

// One part of the hidden channels at a time: memory is read in whole rows, and for all but the first
// token they come from the cache.
void Step::add_hidden(const Matrix& value, const float* gate) {
    const std::size_t d = spec_.width;
    announce(parts(), [&](std::size_t part) { return row_of(value, part * kPart); });
    pool_.run(parts(), [&](std::size_t part) {
        std::uint32_t active[2 * kPart];
        counts_[part] = 0;
        for (std::size_t t = 0; t < rows_; ++t) {
            const std::size_t count = find_active(t, part, active);
            const bool alone = rows_ == 1 && part + 1 < parts();
            const std::size_t following = alone ? find_active(t, part + 1, active + count) : 0;
            kernels_.sum_rows(value, active, count, following, &hidden_[t * spec_.hidden], 0, d,
                              &parts_[(part * rows_ + t) * d]);
            counts_[part] += count;
        }
    });
    active_channels_.fetch_add(std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0}),
                               std::memory_order_relaxed);
    pool_.run(divide_up(d, kSumColumns), [&](std::size_t block) {
        const std::size_t first = block * kSumColumns;
        const std::size_t last = std::min(first + kSumColumns, d);
        for (std::size_t t = 0; t < rows_; ++t) {
            float sums[kSumColumns] = {};
            for (std::size_t part = 0; part < parts(); ++part) {
                const float* own = &parts_[(part * rows_ + t) * d];
                for (std::size_t c = first; c < last; ++c) sums[c - first] += own[c];
            }
            for (std::size_t c = first; c < last; ++c) {
                const float share = gate == nullptr ? 1.0f : gate[t * d + c];
                x_[t * d + c] += share * sums[c - first];
            }
        }
    });
}

void Step::project() {
    const std::size_t d = spec_.width;
    const std::size_t v = spec_.vocabulary;
    std::vector<const Run*> wanted;
    for (const Run& run : *runs_) {
        if (run.logits == nullptr) continue;
        const float* last = &x_[(run.first + run.count - 1) * d];
        kernels_.layer_norm(last, weights_.ln_out.weight.data(), weights_.ln_out.bias.data(), d,
                            kLayerNormEps, &normal_[wanted.size() * d]);
        wanted.push_back(&run);
    }
    if (wanted.empty()) return;
    constexpr std::size_t kHeadRows = 64;
    const std::size_t blocks = divide_up(v, kHeadRows);
    announce(blocks, [&](std::size_t block) { return row_of(weights_.head, block * kHeadRows); });
    pool_.run(blocks, [&](std::size_t block) {
        const std::size_t first = block * kHeadRows;
        const std::size_t last = std::min(first + kHeadRows, v);
        float logits[kMaxRows * kHeadRows];  // [wanted, kHeadRows]
        // The kernel writes y[row] for rows from `first`, hence the shifted start.
        const Matrix part = part_of(weights_.head, first, last);
        kernels_.matmul(part, 0, last - first, normal_.data(), d, wanted.size(), logits, kHeadRows);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            std::memcpy(wanted[i]->logits + first, logits + i * kHeadRows,
                        (last - first) * sizeof(float));
        }
    });
}

std::unique_ptr<Step> make_step(const Spec& spec, const ModelWeights& weights, const Kernels& kernels,
                                ThreadPool& pool) {
    const auto of_generation = [&](const auto& layers) {
        return make_step(spec, weights, layers, kernels, pool);
    };
    return std::visit(of_generation, weights.layers);
}

}  // namespace rwkv
