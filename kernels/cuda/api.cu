#include "api.h"

#include <exception>
#include <map>
#include <memory>
#include <new>
#include <string>

#include "bandwidth.cuh"
#include "engine.h"
#include "rwkv/loading.h"

using rwkv::cuda::Engine;
using rwkv::cuda::Failure;

struct RwkvCudaModel {
    int device;
    std::unique_ptr<Engine> engine;
    bool lost = false;
};

namespace {

thread_local std::string last_error;

int fail(int code, const std::string& sentence) {
    last_error = sentence;
    return code;
}

// Turns what is thrown into a code and a sentence.
template <typename Work>
int guarded(Work work) {
    try {
        work();
        return RWKV_CUDA_OK;
    } catch (const Failure& failure) {
        return fail(failure.code, failure.sentence);
    } catch (const std::bad_alloc&) {
        return fail(RWKV_CUDA_REFUSED, "There is not enough memory; close other programs.");
    } catch (const std::exception& error) {
        return fail(RWKV_CUDA_REFUSED, error.what());
    }
}

template <typename Work>
int on_device(RwkvCudaModel* model, Work work) {
    if (model->lost) return fail(RWKV_CUDA_LOST, "The GPU failed before.");
    const int code = guarded([&] {
        rwkv::cuda::check(cudaSetDevice(model->device), "choosing the GPU");
        work(*model->engine);
    });
    // What is half done cannot be told from what is whole.
    if (code == RWKV_CUDA_LOST || code == RWKV_CUDA_MEMORY) model->lost = true;
    return code;
}

rwkv::Spec read_spec(const RwkvCudaSpec& from) {
    rwkv::Spec spec = rwkv::parse_generation(from.generation);
    spec.layers = from.layers;
    spec.width = from.width;
    spec.att_width = from.att_width;
    spec.vocabulary = from.vocabulary;
    spec.head_size = from.head_size;
    spec.hidden = from.hidden;
    spec.rank_w = from.rank_w;
    spec.rank_a = from.rank_a;
    spec.rank_v = from.rank_v;
    spec.rank_g = from.rank_g;
    spec.rank_mix = from.rank_mix;
    spec.group_norm_eps = from.group_norm_eps;
    rwkv::check_spec(spec);
    return spec;
}

rwkv::ModelWeights read_weights(const rwkv::Spec& spec, const RwkvCudaTensor* tensors, size_t count) {
    static const rwkv::Weights types[] = {rwkv::Weights::f32, rwkv::Weights::bf16, rwkv::Weights::q8_rows,
                                          rwkv::Weights::q4_rows};
    static const rwkv::Weights tiled[] = {rwkv::Weights::f32, rwkv::Weights::bf16, rwkv::Weights::q8,
                                          rwkv::Weights::q4};
    std::map<std::string, rwkv::Tensor> named;
    for (size_t i = 0; i < count; ++i) {
        const RwkvCudaTensor& from = tensors[i];
        if (from.type < 0 || from.type > 3 || from.dimensions < 1 || from.dimensions > 3) {
            rwkv::cuda::refuse(std::string("Tensor ") + from.name + " has no type that can be used.");
        }
        named[from.name] = {static_cast<const unsigned char*>(from.data),
                            {from.shape, from.shape + from.dimensions},
                            (from.dimensions == 3 ? tiled : types)[from.type]};
    }
    return rwkv::load_weights(spec, named);
}

}  // namespace

extern "C" {

const char* rwkv_cuda_error(void) { return last_error.c_str(); }

int rwkv_cuda_version(void) { return RWKV_CUDA_VERSION; }

int rwkv_cuda_devices(int* count) {
    *count = 0;
    return guarded([&] { rwkv::cuda::check(cudaGetDeviceCount(count), "looking for GPUs"); });
}

int rwkv_cuda_device(int index, RwkvCudaDevice* device) {
    return guarded([&] {
        cudaDeviceProp found;
        rwkv::cuda::check(cudaSetDevice(index), "choosing the GPU");
        rwkv::cuda::check(cudaGetDeviceProperties(&found, index), "asking what it is");
        size_t free = 0, total = 0;
        rwkv::cuda::check(cudaMemGetInfo(&free, &total), "asking for its memory");
        *device = {{}, found.major, found.minor, found.multiProcessorCount, total, free};
        std::string(found.name).copy(device->name, sizeof device->name - 1);
    });
}

int rwkv_cuda_need(const RwkvCudaSpec* spec, const RwkvCudaTensor* tensors, size_t count, int slots,
                   uint64_t* bytes) {
    return guarded([&] {
        const rwkv::Spec sizes = read_spec(*spec);
        *bytes = Engine::need(sizes, read_weights(sizes, tensors, count), slots);
    });
}

int rwkv_cuda_open(int device, const RwkvCudaSpec* spec, const RwkvCudaTensor* tensors, size_t count,
                   int slots, RwkvCudaModel** model) {
    return guarded([&] {
        if (device < 0) rwkv::cuda::refuse("GPUs are counted from 0.");
        const rwkv::Spec sizes = read_spec(*spec);
        const rwkv::ModelWeights weights = read_weights(sizes, tensors, count);
        auto opened = std::make_unique<RwkvCudaModel>();
        opened->device = device;
        opened->engine = std::make_unique<Engine>(device, sizes, weights, slots);
        *model = opened.release();
    });
}

void rwkv_cuda_close(RwkvCudaModel* model) {
    const std::unique_ptr<RwkvCudaModel> owned(model);
    if (model != nullptr) cudaSetDevice(model->device);
}

int rwkv_cuda_write_state(RwkvCudaModel* model, int slot, const float* state) {
    return on_device(model, [&](Engine& engine) { engine.write_state(slot, state); });
}

int rwkv_cuda_read_state(RwkvCudaModel* model, int slot, float* state) {
    return on_device(model, [&](Engine& engine) { engine.read_state(slot, state); });
}

int rwkv_cuda_copy_state(RwkvCudaModel* model, int from, int to) {
    return on_device(model, [&](Engine& engine) { engine.copy_state(from, to); });
}

int rwkv_cuda_forward(RwkvCudaModel* model, int runs, const int* slots, const int* counts,
                      const uint32_t* ids, float* logits) {
    return on_device(model, [&](Engine& engine) { engine.forward(runs, slots, counts, ids, logits); });
}

int rwkv_cuda_sampling(RwkvCudaModel* model, int slot, const RwkvCudaSampling* sampling,
                       const uint32_t* banned, const uint32_t* exempt, const uint32_t* counted,
                       const double* values, size_t count) {
    return on_device(model, [&](Engine& engine) {
        engine.sampling(slot, *sampling, banned, exempt, counted, values, count);
    });
}

int rwkv_cuda_choose(RwkvCudaModel* model, int slot, const float* logits, uint32_t* id) {
    return on_device(model, [&](Engine& engine) { *id = engine.choose_after(slot, logits); });
}

int rwkv_cuda_step(RwkvCudaModel* model, int count, const int* slots, const uint32_t* ids, uint32_t* next) {
    return on_device(model, [&](Engine& engine) { engine.step(count, slots, ids, next); });
}

int rwkv_cuda_logits(RwkvCudaModel* model, int index, float* logits) {
    return on_device(model, [&](Engine& engine) { engine.read_logits(index, logits); });
}

int rwkv_cuda_bandwidth(int device, double* bytes_per_second) {
    return guarded([&] {
        rwkv::cuda::check(cudaSetDevice(device), "choosing the GPU");
        *bytes_per_second = rwkv::cuda::read_bandwidth();
    });
}

}  // extern "C"
