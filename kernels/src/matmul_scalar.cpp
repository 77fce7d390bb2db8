// The reference: every sum in order, in float64.

#include "operations.h"
#include "rounding.h"

namespace rwkv::scalar {

void round(Weights weights, const float* x, size_t n, unsigned char* rounded) {
    if (weights == Weights::q8) return round_q8(x, n, rounded);
    float* values = reinterpret_cast<float*>(rounded);
    for (size_t i = 0; i < n; ++i) values[i] = weights == Weights::bf16 ? round_bf16(x[i]) : x[i];
}

void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
            float* y, size_t y_stride) {
    if (w.weights == Weights::q8) return matmul_q8(w, first, last, x, tokens, y, y_stride);
    const size_t stride = rounded_bytes(w.weights, w.columns);
    if (w.weights == Weights::q4) {
        const float* floats = reinterpret_cast<const float*>(x);
        return matmul_q4(w, first, last, floats, stride / sizeof(float), tokens, y, y_stride);
    }
    for (size_t row = first; row < last; ++row) {
        const unsigned char* weights = row_of(w, row);
        for (size_t t = 0; t < tokens; ++t) {
            const float* own = reinterpret_cast<const float*>(x + t * stride);
            double sum = 0.0;
            for (size_t j = 0; j < w.columns; ++j) {
                sum += static_cast<double>(load(weights, j, w.weights)) * own[j];
            }
            y[t * y_stride + row] = static_cast<float>(sum);
        }
    }
}

}  // namespace rwkv::scalar
