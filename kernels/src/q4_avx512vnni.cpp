#include "operations.h"
#include "q4_matmul_avx512.h"

namespace rwkv::avx512vnni {

void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride) {
    multiply_q4(w, first, last, x, x_stride, tokens, y, y_stride);
}

}  // namespace rwkv::avx512vnni
