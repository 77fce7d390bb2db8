#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "elements.h"
#include "rounding.h"

namespace rwkv {
namespace {

constexpr float kLayerNormEps = 1e-5f;
constexpr std::size_t kMaxBlock = 128;
constexpr float kZeros[kMaxBlock] = {};

// Rows of a matrix per item of a loop. Every item of q4 rounds the activations anew.
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
    const std::size_t sparse = std::min(rows, kSparseRows);
    counts_.resize(parts());
    parts_.resize(parts() * sparse * d);
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
    for_rows(rows_, [&](std::size_t t) {
        float* x = &x_[t * d];
        copy_row(weights_.emb, ids_[t], x);
        if (spec_.normed) return;
        kernels_.layer_norm(x, weights_.ln0.weight.data(), weights_.ln0.bias.data(), d,
                            kLayerNormEps, x);
    });
}

void Step::normalize(const Norm& norm) {
    const std::size_t d = spec_.width;
    for_rows(rows_, [&](std::size_t t) {
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
    for_rows(rows_, [&](std::size_t t) {
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

void Step::round(const Product* products, std::size_t count, const unsigned char** inputs) {
    std::size_t offsets[kMaxProducts];
    std::size_t size = 0;
    const auto first_alike = [&](std::size_t p) {
        std::size_t q = 0;
        while (products[q].x != products[p].x ||
               products[q].matrix->weights != products[p].matrix->weights) {
            ++q;
        }
        return q;
    };
    for (std::size_t p = 0; p < count; ++p) {
        const Matrix& matrix = *products[p].matrix;
        offsets[p] = size;
        if (first_alike(p) == p) size += rows_ * rounded_bytes(matrix.weights, matrix.columns);
    }
    if (rounded_.size() * sizeof(Line) < size) rounded_.resize(divide_up(size, sizeof(Line)));
    unsigned char* data = rounded_.data()->bytes;
    for (std::size_t p = 0; p < count; ++p) inputs[p] = data + offsets[first_alike(p)];
    for_rows(rows_, [&](std::size_t t) {
        for (std::size_t p = 0; p < count; ++p) {
            if (first_alike(p) != p) continue;
            const Matrix& matrix = *products[p].matrix;
            kernels_.round(matrix.weights, products[p].x + t * products[p].x_stride, matrix.columns,
                           data + offsets[p] + t * rounded_bytes(matrix.weights, matrix.columns));
        }
    });
}

void Step::multiply_rows(const Product& product, const unsigned char* input, std::size_t first,
                         std::size_t last) {
    kernels_.matmul(*product.matrix, first, last, input, rows_, product.y, product.y_stride);
}

void Step::multiply(const Product* products, std::size_t count) {
    const unsigned char* inputs[kMaxProducts];
    round(products, count, inputs);
    const std::size_t blocks = count_blocks(products, count);
    announce(blocks, [&](std::size_t block) {
        const Matrix& matrix = *find_product(products, block)->matrix;
        return row_of(matrix, block * block_rows(matrix));
    });
    pool_.run(blocks, [&](std::size_t block) {
        const Product* product = find_product(products, block);
        const Matrix& matrix = *product->matrix;
        const std::size_t first = block * block_rows(matrix);
        const std::size_t last = std::min(first + block_rows(matrix), matrix.rows);
        multiply_rows(*product, inputs[product - products], first, last);
        if (product->finish != Finish::none) finish(*product, first, last);
    });
}

void Step::finish(const Product& product, std::size_t first, std::size_t last) {
    for (std::size_t t = 0; t < rows_; ++t) {
        float* y = product.y + t * product.y_stride;
        switch (product.finish) {
            case Finish::tanh:
                // tanh(x) = 2 sigmoid(2 x) - 1
                kernels_.sigmoid(y + first, y + first, last - first);
                for (std::size_t i = first; i < last; ++i) y[i] = 2 * y[i] - 1;
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
                // Without a comparison, so that the compiler makes vectors of it. A NaN passes, so
                // that a broken model is noticed.
                for (std::size_t i = first; i < last; ++i) {
                    const float positive = (y[i] + std::fabs(y[i])) * 0.5f;
                    y[i] = positive * positive;
                }
                break;
            case Finish::add_to_x:
                for (std::size_t i = first; i < last; ++i) x_[t * spec_.width + i] += y[i];
                break;
            case Finish::none: break;
        }
    }
}

void Step::add_hidden(const Matrix& value, const float* gate) {
    const std::size_t f = spec_.hidden;
    std::size_t active = 0;
    if (rows_ > 1) {
        std::atomic<std::size_t> counted{0};
        for_rows(rows_, [&](std::size_t t) {
            std::uint32_t own = 0;
            for (std::size_t i = t * f; i < (t + 1) * f; ++i) own += hidden_[i] != 0;
            counted.fetch_add(own, std::memory_order_relaxed);
        });
        active = counted.load();
    }
    // Only these have products of all rows that are faster than those of single ones, three times.
    const bool fast = value.weights == Weights::q8_rows || value.weights == Weights::bf16;
    announce(parts(), [&](std::size_t part) { return row_of(value, part * kPart); });
    if (fast && active > f && active > rows_ * f * 3 / 10) {
        active_channels_.fetch_add(active, std::memory_order_relaxed);
        return add_all(value, gate);
    }
    for (std::size_t first = 0; first < rows_; first += kSparseRows) {
        add_active(value, gate, first, std::min(first + kSparseRows, rows_));
    }
}

void Step::add_all(const Matrix& value, const float* gate) {
    const std::size_t d = spec_.width;
    const std::size_t f = spec_.hidden;
    const std::size_t blocks = divide_up(d, kGroup);
    pool_.run(blocks * divide_up(rows_, kMaxSummed), [&](std::size_t item) {
        const std::size_t first = item % blocks * kGroup;
        const std::size_t last = std::min(first + kGroup, d);
        const std::size_t begin = item / blocks * kMaxSummed;
        const std::size_t end = std::min(begin + kMaxSummed, rows_);
        float sums[kMaxSummed * kGroup];
        // The kernel writes y[c] for columns from `first`, hence the shifted start.
        kernels_.sum_all_rows(value, &hidden_[begin * f], f, end - begin, first, last, sums - first,
                              kGroup);
        for (std::size_t t = begin; t < end; ++t) {
            const float* own = sums + (t - begin) * kGroup;
            for (std::size_t c = first; c < last; ++c) {
                const float share = gate == nullptr ? 1.0f : gate[t * d + c];
                x_[t * d + c] += share * own[c - first];
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
void Step::add_active(const Matrix& value, const float* gate, std::size_t begin, std::size_t end) {
    const std::size_t d = spec_.width;
    const std::size_t rows = end - begin;
    const auto begins_range = [&](std::size_t part) {
        std::size_t thread = 0;
        while (thread < pool_.size() && pool_.first_item(thread, parts()) != part) ++thread;
        return thread < pool_.size();
    };
    pool_.run(parts(), [&](std::size_t part) {
        std::uint32_t active[2 * kPart];
        counts_[part] = 0;
        for (std::size_t i = 0; i < rows; ++i) {
            const std::size_t count = find_active(begin + i, part, active);
            std::size_t following = 0;
            if (rows == 1) {
                if (begins_range(part)) {
                    for (std::size_t r = 0; r < count; ++r) {
                        const unsigned char* row = row_of(value, active[r]);
                        ask_for(row, static_cast<std::size_t>(row_of(value, active[r] + 1) - row));
                    }
                }
                // The next part is another thread's if it begins a range.
                const bool goes_on = part + 1 < parts() && !begins_range(part + 1);
                if (goes_on) following = find_active(begin + i, part + 1, active + count);
            }
            kernels_.sum_rows(value, active, count, following, &hidden_[(begin + i) * spec_.hidden], 0,
                              d, &parts_[(part * rows + i) * d]);
            counts_[part] += count;
        }
    });
    active_channels_.fetch_add(std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0}),
                               std::memory_order_relaxed);
    pool_.run(divide_up(d, kGroup), [&](std::size_t block) {
        const std::size_t first = block * kGroup;
        const std::size_t last = std::min(first + kGroup, d);
        for (std::size_t i = 0; i < rows; ++i) {
            float sums[kGroup] = {};
            for (std::size_t part = 0; part < parts(); ++part) {
                const float* own = &parts_[(part * rows + i) * d];
                for (std::size_t c = first; c < last; ++c) sums[c - first] += own[c];
            }
            const std::size_t t = begin + i;
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
    rows_ = wanted.size();
    const Product product{&weights_.head, normal_.data(), d, nullptr, 0, Finish::none};
    const unsigned char* input;
    round(&product, 1, &input);
    constexpr std::size_t kHeadRows = 64;
    const std::size_t blocks = divide_up(v, kHeadRows);
    announce(blocks, [&](std::size_t block) { return row_of(weights_.head, block * kHeadRows); });
    pool_.run(blocks, [&](std::size_t block) {
        const std::size_t first = block * kHeadRows;
        const std::size_t last = std::min(first + kHeadRows, v);
        float logits[kMaxRows * kHeadRows];  // [wanted, kHeadRows]
        // The kernel writes y[row] for rows from `first`, hence the part.
        const Matrix part = part_of(weights_.head, first, last);
        kernels_.matmul(part, 0, last - first, input, wanted.size(), logits, kHeadRows);
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
