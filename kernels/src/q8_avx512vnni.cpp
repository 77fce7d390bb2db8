#include "operations.h"
#include "q8_matmul_avx512.h"

namespace rwkv::avx512vnni {

void matmul(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride, size_t tokens,
            float* y, size_t y_stride) {
    if (w.weights == Weights::q8) {
        multiply_q8(w, first, last, x, x_stride, tokens, y, y_stride);
    } else if (w.weights == Weights::q4) {
        matmul_q4(w, first, last, x, x_stride, tokens, y, y_stride);
    } else {
        avx512::matmul(w, first, last, x, x_stride, tokens, y, y_stride);
    }
}

}  // namespace rwkv::avx512vnni
