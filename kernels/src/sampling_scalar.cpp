// What the sampler does with whole vocabularies: the reference.

#include <cmath>

#include "operations.h"

namespace rwkv::scalar {

float largest(const float* x, size_t n) {
    float best = x[0];
    for (size_t i = 1; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
}

double weigh(const float* x, size_t n, float maximum, float scale, float* weights) {
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
        const float exponent = (x[i] - maximum) * scale;
        weights[i] = exponent >= -87.0f ? static_cast<float>(std::exp(static_cast<double>(exponent)))
                                        : 0.0f;
        sum += weights[i];
    }
    return sum;
}

Mass mass_from(const float* weights, size_t n, float least) {
    Mass mass{0, 0};
    for (size_t i = 0; i < n; ++i) {
        if (weights[i] < least) continue;
        mass.sum += weights[i];
        ++mass.count;
    }
    return mass;
}

size_t keep_between(const float* weights, const uint32_t* ids, size_t n, float least, float end,
                    float* kept, uint32_t* kept_ids) {
    size_t count = 0;
    for (size_t i = 0; i < n; ++i) {
        const float weight = weights[i];
        if (!(weight >= least && weight < end)) continue;
        if (kept_ids) kept_ids[count] = ids ? ids[i] : static_cast<uint32_t>(i);
        kept[count++] = weight;
    }
    return count;
}

}  // namespace rwkv::scalar
