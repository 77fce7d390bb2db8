/* The door of the CUDA engine: a library of its own, loaded at run time, so that nothing else needs it.
 *
 * Every function returns RWKV_CUDA_OK or what kind of failure it was; rwkv_cuda_error() is then a
 * sentence for people. A model is used by one thread at a time. States have the layout of rwkv::Spec,
 * float32, so that those of the CPU and of the GPU are exchanged as they are. What a token computes does
 * not depend on the other tokens of a call, nor on how ids are split over calls: to the bit.
 */
#ifndef RWKV_CUDA_API_H
#define RWKV_CUDA_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RWKV_CUDA_VERSION 1
#define RWKV_CUDA_API __attribute__((visibility("default")))

enum {
    RWKV_CUDA_OK = 0,
    RWKV_CUDA_REFUSED = 1,   /* an argument is wrong; nothing happened */
    RWKV_CUDA_MEMORY = 2,    /* it does not fit into the memory of the device; nothing happened */
    RWKV_CUDA_LOST = 3,      /* the device failed; the model can only be closed */
    RWKV_CUDA_NO_DEVICE = 4  /* no driver, or no device */
};

typedef struct {
    char name[256];
    int major, minor;       /* of its capability */
    int processors;
    uint64_t total, free;   /* bytes of its memory */
} RwkvCudaDevice;

typedef struct {
    const char* generation; /* such as "7" */
    uint64_t layers, width, att_width, vocabulary, head_size, hidden;
    uint64_t rank_w, rank_a, rank_v, rank_g, rank_mix;
    float group_norm_eps;
} RwkvCudaSpec;

/* A tensor of a converted file; `emb.weight` is read as long as the model lives, others are copied. */
typedef struct {
    const char* name;
    const void* data;
    uint64_t shape[3];
    int dimensions;
    int type;               /* 0 float32, 1 bfloat16, 2 int8, 3 uint8: packed 4 bits */
} RwkvCudaTensor;

typedef struct {
    double temperature, top_p, min_p, presence, frequency, decay;
    uint64_t top_k, seed, draw;
} RwkvCudaSampling;

typedef struct RwkvCudaModel RwkvCudaModel;

RWKV_CUDA_API const char* rwkv_cuda_error(void);
RWKV_CUDA_API int rwkv_cuda_version(void);

RWKV_CUDA_API int rwkv_cuda_devices(int* count);
RWKV_CUDA_API int rwkv_cuda_device(int index, RwkvCudaDevice* device);

/* Bytes of device memory for a model with `slots` states. */
RWKV_CUDA_API int rwkv_cuda_need(const RwkvCudaSpec* spec, const RwkvCudaTensor* tensors, size_t count, int slots,
                   uint64_t* bytes);
RWKV_CUDA_API int rwkv_cuda_open(int device, const RwkvCudaSpec* spec, const RwkvCudaTensor* tensors, size_t count,
                   int slots, RwkvCudaModel** model);
RWKV_CUDA_API void rwkv_cuda_close(RwkvCudaModel* model);

/* Slots hold one state each. */
RWKV_CUDA_API int rwkv_cuda_write_state(RwkvCudaModel* model, int slot, const float* state);
RWKV_CUDA_API int rwkv_cuda_read_state(RwkvCudaModel* model, int slot, float* state);
RWKV_CUDA_API int rwkv_cuda_copy_state(RwkvCudaModel* model, int from, int to);

/* Feeds counts[i] ids (at least one) to slots[i] (all different), for i < runs <= slots; logits
 * [runs, vocabulary] after the last ones. `ids` are those of all runs, one after the other. */
RWKV_CUDA_API int rwkv_cuda_forward(RwkvCudaModel* model, int runs, const int* slots, const int* counts,
                      const uint32_t* ids, float* logits);

/* How `slot` samples from now on. Bit i % 32 of word i / 32 stands for id i. `counted` ids have a
 * penalty already, `values` are how often they were counted. */
RWKV_CUDA_API int rwkv_cuda_sampling(RwkvCudaModel* model, int slot, const RwkvCudaSampling* sampling,
                       const uint32_t* banned, const uint32_t* exempt, const uint32_t* counted,
                       const double* values, size_t count);

/* The next token of `slot` after logits [vocabulary]; 0xFFFFFFFF if they are not all finite. */
RWKV_CUDA_API int rwkv_cuda_choose(RwkvCudaModel* model, int slot, const float* logits, uint32_t* id);

/* Feeds one id to each of the slots, counts it, and chooses the next ones, all on the device. */
RWKV_CUDA_API int rwkv_cuda_step(RwkvCudaModel* model, int count, const int* slots, const uint32_t* ids,
                                 uint32_t* next);

/* The logits [vocabulary] of place `index` of the last rwkv_cuda_step. */
RWKV_CUDA_API int rwkv_cuda_logits(RwkvCudaModel* model, int index, float* logits);

/* Bytes per second that the device reads from its memory, measured now; takes 256 MiB. */
RWKV_CUDA_API int rwkv_cuda_bandwidth(int device, double* bytes_per_second);

#ifdef __cplusplus
}
#endif

#endif
