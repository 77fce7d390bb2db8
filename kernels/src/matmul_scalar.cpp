// The reference: every sum in order, in float64.

#include "elements.h"
#include "operations.h"

namespace rwkv::scalar {

void matmul(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
            size_t tokens, float* y, size_t y_stride) {
    if (w.weights == Weights::q8) return matmul_q8(w, first, last, x, x_stride, tokens, y, y_stride);
    if (w.weights == Weights::q4) return matmul_q4(w, first, last, x, x_stride, tokens, y, y_stride);
    for (size_t row = first; row < last; ++row) {
        const unsigned char* weights = row_of(w, row);
        for (size_t t = 0; t < tokens; ++t) {
            double sum = 0.0;
            for (size_t j = 0; j < w.columns; ++j) {
                sum += static_cast<double>(load(weights, j, w.weights)) * x[t * x_stride + j];
            }
            y[t * y_stride + row] = static_cast<float>(sum);
        }
    }
}

}  // namespace rwkv::scalar
