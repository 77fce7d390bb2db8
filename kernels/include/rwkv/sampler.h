// The choice of the next token, in RWKV order: penalties on the logits, softmax, then top-p, top-k
// and min-p cut the probabilities, then temperature is applied to what is left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rwkv/kernels.h"

namespace rwkv {

// The number in [0, 1) that belongs to the draw-th token (from 0) of an answer.
double random_number(std::uint64_t seed, std::uint64_t draw);

// False if any of the n values is NaN or infinite.
bool all_finite(const float* x, std::size_t n);

struct SamplingSettings {
    double temperature;  // 0: the most probable token
    double top_p;        // in [0, 1]: the smallest set of most probable tokens that reaches it
    std::uint64_t top_k; // 0: all
    double min_p;        // in [0, 1]: relative to the most probable token
};

class Sampler {
public:
    explicit Sampler(const Kernels& kernels) : kernels_(kernels) {}

    // The id that `random` in [0, 1) picks. logits [n] holds neither NaN nor +infinity, and at least
    // one finite value; -infinity stands for a token that cannot be chosen. Weights are float32 and
    // their sums float64: a cut or a draw within 1e-6 of an edge may fall on its other side.
    std::uint32_t choose(const std::vector<float>& logits, const SamplingSettings& settings,
                         double random);

private:
    enum class Measure { sum, count };

    std::size_t cut(std::size_t count, double goal, Measure measure, float& last);
    std::size_t cut_all(double total, const SamplingSettings& settings);
    std::size_t draw(const std::vector<float>& weights, std::size_t n, double random);

    const Kernels& kernels_;
    std::vector<float> weights_;      // [V]: exp(logit - maximum)
    std::vector<float> kept_;         // what the cuts have left, and room
    std::vector<std::uint32_t> ids_;  // of kept_
    std::vector<float> scratch_;
    std::vector<double> sums_;        // of blocks of weights
};

// What a token loses for having been chosen before in the same answer.
class Penalties {
public:
    // `exempt[id]` ids lose nothing; tokens is the size of the vocabulary.
    Penalties(double presence, double frequency, double decay, std::vector<bool> exempt);

    // All counts decay, then that of `id` grows by one.
    void count(std::uint32_t id);

    // logits[id] -= presence + count * frequency for every id that was chosen.
    void apply(std::vector<float>& logits) const;

private:
    struct Count {
        std::uint32_t id;
        double value;
    };

    double presence_, frequency_, decay_;
    std::vector<bool> exempt_;
    std::vector<Count> counts_;           // in order of first choice
    std::vector<std::uint32_t> places_;   // [tokens]: 1 + place in counts_, or 0
};

}  // namespace rwkv
