// The choice of the next token on the device, as rwkv/sampler.h describes it.
//
// Weights are float32 and their sums 64-bit integers in units of 2^-44 of the largest weight, so that
// no sum depends on the order of its terms. The choice is that of the sampler of the CPU but where
// the random number falls within about 1e-6 of the border between two tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rwkv::cuda {

struct Count {
    uint32_t id;
    float unused;
    double value;
};

// How one state samples. Memory of the device.
struct Chooser {
    double temperature, top_p, min_p;
    double presence, frequency, decay;
    uint64_t top_k, seed, draw;
    uint32_t count;  // ids with a penalty
};

struct Choosers {
    Chooser* each;            // [slots]
    Count* counts;            // [slots, vocabulary]
    uint32_t* banned;         // [slots, words]: a bit for every id that must not be chosen
    uint32_t* exempt;         // [slots, words]: a bit for every id without a penalty
    float* adjusted;          // [outputs, vocabulary]
    int vocabulary;

    __host__ __device__ int words() const { return (vocabulary + 31) / 32; }
};

constexpr uint32_t kNotFinite = 0xFFFFFFFFu;  // in the place of an id: the logits are not all finite

// For output i of `slots`: counts fed[i] (unless `fed` is null), and ids[i] is the next token after
// logits [outputs, vocabulary].
int choose(const Choosers& choosers, const float* logits, const int* slots, const uint32_t* fed,
           int outputs, uint32_t* ids, cudaStream_t stream);

}  // namespace rwkv::cuda
