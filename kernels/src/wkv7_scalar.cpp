// The reference: every sum in order, in float64.

#include "operations.h"

namespace rwkv::scalar {

void wkv7(const Wkv7Head& head, float* state, float* y) {
    const size_t n = head.size;
    for (size_t i = 0; i < n; ++i) {
        float* row = state + i * n;
        double removed = 0.0;
        for (size_t j = 0; j < n; ++j) removed -= static_cast<double>(row[j]) * head.kk[j];
        double sum = 0.0;
        for (size_t j = 0; j < n; ++j) {
            row[j] = static_cast<float>(static_cast<double>(row[j]) * head.w[j] +
                                        removed * head.kk_a[j] +
                                        static_cast<double>(head.v[i]) * head.k[j]);
            sum += static_cast<double>(row[j]) * head.r[j];
        }
        y[i] = static_cast<float>(sum);
    }
}

}  // namespace rwkv::scalar
