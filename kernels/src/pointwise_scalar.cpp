// The reference: in float64, rounded once at the end.

#include <cmath>

#include "operations.h"

namespace rwkv::scalar {

void layer_norm(const float* x, const float* weight, const float* bias, size_t n, float eps,
                float* y) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) sum += x[i];
    const double mean = sum / static_cast<double>(n);
    double squares = 0.0;
    for (size_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
    for (size_t i = 0; i < n; ++i) {
        y[i] = static_cast<float>((x[i] - mean) * scale * weight[i] + bias[i]);
    }
}

void token_shift(const float* x, const float* previous, const float* mix, size_t n, float* y) {
    for (size_t i = 0; i < n; ++i) y[i] = x[i] + (previous[i] - x[i]) * mix[i];
}

void sigmoid(float* x, const float* bias, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        const double value = static_cast<double>(x[i]) + bias[i];
        x[i] = static_cast<float>(1.0 / (1.0 + std::exp(-value)));
    }
}

void decay6(float* x, const float* bias, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        const double value = static_cast<double>(x[i]) + bias[i];
        x[i] = static_cast<float>(std::exp(-std::exp(value)));
    }
}

void decay7(float* x, const float* bias, size_t n) {
    sigmoid(x, bias, n);
    for (size_t i = 0; i < n; ++i) x[i] = static_cast<float>(std::exp(-0.6065306597126334 * x[i]));
}

}  // namespace rwkv::scalar
