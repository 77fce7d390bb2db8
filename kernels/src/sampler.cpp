#include "rwkv/sampler.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

namespace rwkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float value_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

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

// Leaves in kept_ and ids_ the tokens of at least the weight with which the most probable ones
// first amount to `goal`, a sum of weights or a number of tokens, which all of them together do.
// `last` is a weight that all of kept_ have, and becomes the least that is left. Returns how many are.
std::size_t Sampler::cut(std::size_t count, double goal, Measure measure, float& last) {
    const auto amount = [&](const float* values, std::size_t n, std::uint32_t from) {
        const Mass mass = kernels_.mass_from(values, n, value_of(from));
        return measure == Measure::sum ? mass.sum : static_cast<double>(mass.count);
    };
    // Weights are ordered as their bits are. What is at least `high` does not reach the goal, what is
    // at least `low` does.
    std::uint32_t low = bits_of(last);
    std::uint32_t high = bits_of(1.0f) + 1;
    double above = 0;
    scratch_.resize(count + kRoom);
    const float* values = kept_.data();
    std::size_t n = count;
    constexpr std::size_t kFew = 64;
    while (n > kFew && high - low > 1) {
        const std::uint32_t middle = low + (high - low) / 2;
        const double reached = above + amount(values, n, middle);
        if (reached >= goal) {
            low = middle;
        } else {
            above = reached;
            high = middle;
        }
        n = kernels_.keep_between(values, nullptr, n, value_of(low), value_of(high), scratch_.data(),
                                  nullptr);
        values = scratch_.data();
    }
    if (values == kept_.data()) std::copy_n(values, n, scratch_.begin());
    std::sort(scratch_.begin(), scratch_.begin() + static_cast<std::ptrdiff_t>(n), std::greater<>());
    last = value_of(low);
    for (std::size_t i = 0; i < n; ++i) {
        above += measure == Measure::sum ? static_cast<double>(scratch_[i]) : 1;
        last = scratch_[i];
        if (above >= goal) break;
    }
    return kernels_.keep_between(kept_.data(), ids_.data(), count, last, kInfinity, kept_.data(),
                                 ids_.data());
}

// Leaves in kept_ and ids_, in the order of ids, what top-p, top-k and min-p leave of weights_,
// whose sum is `total` and whose largest is 1. Returns how many.
std::size_t Sampler::cut_all(double total, const SamplingSettings& settings) {
    const std::size_t n = weights_.size();
    const double goal =
        settings.top_p < 1 ? std::max(settings.top_p * total, std::numeric_limits<double>::min())
                           : std::numeric_limits<double>::infinity();
    const std::uint64_t top_k = settings.top_k == 0 ? n : settings.top_k;
    const float least =
        std::max(static_cast<float>(settings.min_p), std::numeric_limits<float>::denorm_min());
    kept_.resize(n + kRoom);
    ids_.resize(n + kRoom);
    // Most often all that is left weighs more than a fraction of the largest.
    std::size_t count = 0;
    double sum = 0;
    float last = 0;
    for (const float level : {0x1p-8f, 0x1p-16f, 0x1p-32f, 0.0f}) {
        last = std::max(level, least);
        count = kernels_.keep_between(weights_.data(), nullptr, n, last, kInfinity, kept_.data(),
                                      ids_.data());
        sum = kernels_.mass_from(kept_.data(), count, 0).sum;
        if (sum >= goal || count >= top_k || last == least) break;
    }
    if (sum >= goal) count = cut(count, goal, Measure::sum, last);
    if (count <= top_k) return count;
    count = cut(count, static_cast<double>(top_k), Measure::count, last);
    // Of equal ones those with the lower ids stay.
    const auto end = kept_.begin() + static_cast<std::ptrdiff_t>(count);
    auto room = static_cast<std::ptrdiff_t>(top_k) -
                std::count_if(kept_.begin(), end, [last](float weight) { return weight > last; });
    std::size_t left = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (kept_[i] == last && room-- <= 0) continue;
        kept_[left] = kept_[i];
        ids_[left++] = ids_[i];
    }
    return left;
}

// The place at which the sum of the weights before it passes the part `random` of the whole.
std::size_t Sampler::draw(const std::vector<float>& weights, std::size_t n, double random) {
    constexpr std::size_t kBlock = 512;
    sums_.clear();
    double total = 0;
    for (std::size_t first = 0; first < n; first += kBlock) {
        sums_.push_back(
            kernels_.mass_from(weights.data() + first, std::min(kBlock, n - first), 0).sum);
        total += sums_.back();
    }
    const double target = random * total;
    double sum = 0;
    std::size_t block = 0;
    while (block + 1 < sums_.size() && sum + sums_[block] <= target) sum += sums_[block++];
    for (std::size_t i = block * kBlock; i < n; ++i) {
        sum += weights[i];
        if (sum > target) return i;
    }
    std::size_t last = n - 1;  // the sum, rounded, does not reach what is rounded otherwise
    while (weights[last] == 0) --last;
    return last;
}

std::uint32_t Sampler::choose(const std::vector<float>& logits, const SamplingSettings& settings,
                              double random) {
    const std::size_t n = logits.size();
    const float best = kernels_.largest(logits.data(), n);
    if (settings.temperature == 0) {
        return static_cast<std::uint32_t>(std::find(logits.begin(), logits.end(), best) -
                                          logits.begin());
    }
    // p^(1/T) up to a factor. The bounds keep the products numbers.
    const auto scale = static_cast<float>(std::clamp(1 / settings.temperature, 1e-30, 1e30));
    const bool cuts = settings.top_p < 1 || settings.min_p > 0 ||
                      (settings.top_k > 0 && settings.top_k < n);
    weights_.resize(n);
    const double total =
        kernels_.weigh(logits.data(), n, best, cuts ? 1.0f : scale, weights_.data());
    if (!cuts) return static_cast<std::uint32_t>(draw(weights_, n, random));
    const std::size_t count = cut_all(total, settings);
    if (scale != 1) {
        scratch_.resize(count);
        for (std::size_t i = 0; i < count; ++i) scratch_[i] = logits[ids_[i]];
        kernels_.weigh(scratch_.data(), count, best, scale, kept_.data());
    }
    return ids_[draw(kept_, count, random)];
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

void Penalties::apply(std::vector<float>& logits) const {
    for (const Count& count : counts_) {
        logits[count.id] = static_cast<float>(logits[count.id] - (presence_ + count.value * frequency_));
    }
}

}  // namespace rwkv
