// The reference: every sum in order, in float64.

#include "operations.h"

namespace rwkv::scalar {

void wkv5(const Wkv5Head& head, float* state, float* y) {
    const size_t n = head.size;
    double bonus = 0.0;
    for (size_t i = 0; i < n; ++i) {
        bonus += static_cast<double>(head.r[i]) * head.first[i] * head.k[i];
    }
    for (size_t j = 0; j < n; ++j) {
        const double v = head.v[j];
        double sum = bonus * v;
        for (size_t i = 0; i < n; ++i) {
            float& value = state[i * n + j];
            sum += static_cast<double>(value) * head.r[i];
            value = static_cast<float>(static_cast<double>(value) * head.w[i] + head.k[i] * v);
        }
        y[j] = static_cast<float>(sum);
    }
}

}  // namespace rwkv::scalar
