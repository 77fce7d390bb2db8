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
    // one finite value; -infinity stands for a token that cannot be chosen.
    std::uint32_t choose(const std::vector<double>& logits, const SamplingSettings& settings,
                         double random);

private:
    struct Candidate {
        double weight;
        std::uint32_t id;
    };

    double find_cutoff(double top_p, double total);
    void keep_top_k(std::uint64_t top_k);

    const Kernels& kernels_;
    std::vector<double> weights_;         // [n]: exp(logit - maximum)
    std::vector<double> scratch_;
    std::vector<Candidate> candidates_;   // what the cuts have left
};

// What a token loses for having been chosen before in the same answer.
class Penalties {
public:
    // `exempt[id]` ids lose nothing; tokens is the size of the vocabulary.
    Penalties(double presence, double frequency, double decay, std::vector<bool> exempt);

    // All counts decay, then that of `id` grows by one.
    void count(std::uint32_t id);

    // logits[id] -= presence + count * frequency for every id that was chosen.
    void apply(std::vector<double>& logits) const;

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
