#include "rwkv/sampler.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

namespace rwkv {

double random_number(std::uint64_t seed, std::uint64_t draw) {
    // The finaliser of splitmix64 on a counter.
    std::uint64_t z = seed + 0x9E3779B97F4A7C15u * (draw + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1p-53;
}

bool all_finite(const float* x, std::size_t n) {
    std::uint32_t found = 0;
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        found |= static_cast<std::uint32_t>((bits & 0x7F800000u) == 0x7F800000u);
    }
    return found == 0;
}

// The weight of the token at which the sum of the most probable ones reaches top_p; 0 if none is cut.
double Sampler::find_cutoff(double top_p, double total) {
    if (top_p >= 1) return 0;
    // Tokens this improbable weigh less than 1 - top_p together, so the sum is reached before them.
    const double negligible = 0.5 * (1 - top_p) / static_cast<double>(weights_.size()) * total;
    scratch_.clear();
    for (const double weight : weights_) {
        if (weight >= negligible) scratch_.push_back(weight);
    }
    // Halve the range that holds the cutoff until the rest is cheap to sort.
    constexpr std::ptrdiff_t kFew = 256;
    auto begin = scratch_.begin();
    auto end = scratch_.end();
    double sum = 0;
    while (end - begin > kFew) {
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end, std::greater<>());
        const double upper = std::accumulate(begin, middle, 0.0) / total;
        if (sum + upper >= top_p) {
            end = middle;
        } else {
            sum += upper;
            begin = middle;
        }
    }
    std::sort(begin, end, std::greater<>());
    for (; begin != end; ++begin) {
        sum += *begin / total;
        if (sum >= top_p) return *begin;
    }
    return 0;
}

// Keeps the top_k most probable; of equal ones those with the lower ids.
void Sampler::keep_top_k(std::uint64_t top_k) {
    if (top_k == 0 || top_k >= candidates_.size()) return;
    const auto cut = candidates_.begin() + static_cast<std::ptrdiff_t>(top_k);
    std::nth_element(candidates_.begin(), cut, candidates_.end(),
                     [](const Candidate& a, const Candidate& b) {
                         return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
                     });
    candidates_.erase(cut, candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

std::uint32_t Sampler::choose(const std::vector<double>& logits, const SamplingSettings& settings,
                              double random) {
    const std::size_t n = logits.size();
    const auto best = std::max_element(logits.begin(), logits.end());
    if (settings.temperature == 0) return static_cast<std::uint32_t>(best - logits.begin());

    weights_.resize(n);
    double total = kernels_.exp_sum(logits.data(), n, *best, 1.0, weights_.data());
    // The most probable token weighs 1. Cutting by min-p before top-k leaves the same tokens.
    const double least = std::max(find_cutoff(settings.top_p, total), settings.min_p);
    candidates_.clear();
    for (std::size_t i = 0; i < n; ++i) {
        if (weights_[i] >= least && weights_[i] > 0) {
            candidates_.push_back({weights_[i], static_cast<std::uint32_t>(i)});
        }
    }
    keep_top_k(settings.top_k);

    // p^(1/T) up to a factor. The bound keeps 0 * scale a number.
    const double scale = std::min(1 / settings.temperature, 1e300);
    if (scale != 1) {
        scratch_.clear();
        for (const Candidate& c : candidates_) scratch_.push_back(logits[c.id]);
        kernels_.exp_sum(scratch_.data(), scratch_.size(), *best, scale, weights_.data());
        for (std::size_t i = 0; i < candidates_.size(); ++i) candidates_[i].weight = weights_[i];
    }
    total = 0;
    for (const Candidate& c : candidates_) total += c.weight;
    const double target = random * total;
    double sum = 0;
    for (const Candidate& c : candidates_) {
        sum += c.weight;
        if (sum > target) return c.id;
    }
    return candidates_.back().id;
}

Penalties::Penalties(double presence, double frequency, double decay, std::vector<bool> exempt)
    : presence_(presence), frequency_(frequency), decay_(decay), exempt_(std::move(exempt)),
      places_(exempt_.size()) {}

void Penalties::count(std::uint32_t id) {
    for (Count& count : counts_) count.value *= decay_;
    if (exempt_[id]) return;
    if (places_[id] == 0) {
        counts_.push_back({id, 0.0});
        places_[id] = static_cast<std::uint32_t>(counts_.size());
    }
    counts_[places_[id] - 1].value += 1;
}

void Penalties::apply(std::vector<double>& logits) const {
    for (const Count& count : counts_) logits[count.id] -= presence_ + count.value * frequency_;
}

}  // namespace rwkv
