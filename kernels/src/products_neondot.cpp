// Products of integers with instructions for sums of four of them.

#include "operations.h"
#include "q4_neon.h"
#include "q8_neon.h"

namespace rwkv::neondot {

void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
            float* y, size_t y_stride) {
    if (w.weights == Weights::q8) return multiply_q8(w, first, last, x, tokens, y, y_stride);
    if (w.weights != Weights::q4) return neon::matmul(w, first, last, x, tokens, y, y_stride);
    const size_t stride = rounded_bytes(w.weights, w.columns) / sizeof(float);
    multiply_q4(w, first, last, reinterpret_cast<const float*>(x), stride, tokens, y, y_stride);
}

}  // namespace rwkv::neondot
