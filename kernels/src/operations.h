// The functions behind the tables of kernels.h, one namespace per instruction set.
#pragma once

#include "rwkv/kernels.h"

// What newer instructions change as well; all else is then that of avx512, or of avx512vnni.
#define RWKV_DECLARE_PRODUCTS(isa)                                                                \
    namespace rwkv::isa {                                                                         \
    void round(Weights weights, const float* x, size_t n, unsigned char* rounded);                \
    void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,\
                float* y, size_t y_stride);                                                       \
    void sum_rows(const Matrix& w, const uint32_t* rows, size_t count, size_t following,          \
                  const float* x, size_t first, size_t last, float* y);                           \
    void sum_all_rows(const Matrix& w, const float* x, size_t x_stride, size_t tokens,            \
                      size_t first, size_t last, float* y, size_t y_stride);                      \
    }

#define RWKV_DECLARE_OPERATIONS(isa)                                                              \
    RWKV_DECLARE_PRODUCTS(isa)                                                                    \
    namespace rwkv::isa {                                                                         \
    void round_q8(const float* x, size_t n, unsigned char* rounded);                              \
    void matmul_q8(const Matrix& w, size_t first, size_t last, const unsigned char* x,            \
                   size_t tokens, float* y, size_t y_stride);                                     \
    void sum_rows_q8(const Matrix& w, const uint32_t* rows, size_t count, size_t following,       \
                     const float* x, size_t first, size_t last, float* y);                        \
    void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,   \
                   size_t tokens, float* y, size_t y_stride);                                     \
    void sum_rows_q4(const Matrix& w, const uint32_t* rows, size_t count, size_t following,       \
                     const float* x, size_t first, size_t last, float* y);                        \
    void layer_norm(const float* x, const float* weight, const float* bias, size_t n, float eps,  \
                    float* y);                                                                    \
    void token_shift(const float* x, const float* previous, const float* mix, size_t n, float* y);\
    void sigmoid(float* x, const float* bias, size_t n);                                          \
    void decay6(float* x, const float* bias, size_t n);                                           \
    void decay7(float* x, const float* bias, size_t n);                                           \
    void wkv4(const Wkv4Channels& channels, float* numerator, float* denominator, float* exponent,\
              float* y);                                                                          \
    void wkv5(const Wkv5Head& head, float* state, float* y);                                      \
    void wkv7(const Wkv7Head& head, float* state, float* y);                                      \
    float largest(const float* x, size_t n);                                                      \
    double weigh(const float* x, size_t n, float maximum, float scale, float* weights);           \
    Mass mass_from(const float* weights, size_t n, float least);                                  \
    size_t keep_between(const float* weights, const uint32_t* ids, size_t n, float least,         \
                        float end, float* kept, uint32_t* kept_ids);                              \
    }

RWKV_DECLARE_OPERATIONS(scalar)
RWKV_DECLARE_OPERATIONS(avx2)
RWKV_DECLARE_OPERATIONS(avx512)
RWKV_DECLARE_OPERATIONS(neon)

RWKV_DECLARE_PRODUCTS(avx512vnni)
RWKV_DECLARE_PRODUCTS(avx512bf16)

#undef RWKV_DECLARE_PRODUCTS
#undef RWKV_DECLARE_OPERATIONS

namespace rwkv::neondot {
void matmul(const Matrix& w, size_t first, size_t last, const unsigned char* x, size_t tokens,
            float* y, size_t y_stride);
}

namespace rwkv::avx512vnni {
void matmul_q4(const Matrix& w, size_t first, size_t last, const float* x, size_t x_stride,
               size_t tokens, float* y, size_t y_stride);
void sum_rows_q4(const Matrix& w, const uint32_t* rows, size_t count, size_t following,
                 const float* x, size_t first, size_t last, float* y);
}
