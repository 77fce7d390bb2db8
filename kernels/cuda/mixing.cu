#include "mixing.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr float kEps = 1e-5f;

struct Room {
    float sums[kWarps], squares[kWarps];
};

// Calls put(channel, normalized) for every channel that this thread read with get(channel).
template <typename Get, typename Put>
__device__ inline void layer_norm(NormVectors norm, int width, Room& room, Get get, Put put) {
    float sum = 0;
    for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) sum += get(c);
    const float mean = block_sum(sum, room.sums) / static_cast<float>(width);
    float squares = 0;
    for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
        const float centred = get(c) - mean;
        squares += centred * centred;
    }
    const float variance = block_sum(squares, room.squares) / static_cast<float>(width);
    const float scale = 1.0f / sqrtf(variance + kEps);
    for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
        put(c, (get(c) - mean) * scale * norm.weight[c] + norm.bias[c]);
    }
}

__device__ inline float with_added(const float* x, const Added& added, size_t at, size_t size) {
    if (added.count == 0) return x[at];
    float sum = added.parts[at];
    for (int i = 1; i < added.count; ++i) sum += added.parts[i * size + at];
    return added.gate == nullptr ? x[at] + sum : __fmaf_rn(added.gate[at], sum, x[at]);
}

__device__ inline void shift_channel(const Shift& shift, int token, int channel, int width, float normal,
                                     float previous) {
    for (int i = 0; i < shift.count; ++i) {
        float mix = shift.mixes[i][channel];
        if (shift.shares != nullptr) {
            mix += shift.shares[(static_cast<size_t>(token) * shift.count + i) * width + channel];
        }
        shift.out[i].put(token, channel, __fmaf_rn(previous - normal, mix, normal));
    }
}

__global__ void __launch_bounds__(kThreads, 1)
embed_kernel(const float* rows, NormVectors norm, int width, float* x) {
    __shared__ Room room;
    const size_t at = static_cast<size_t>(blockIdx.x) * width;
    if (norm.weight == nullptr) {
        for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) x[at + c] = rows[at + c];
        return;
    }
    layer_norm(norm, width, room, [&](int c) { return rows[at + c]; },
               [&](int c, float normal) { x[at + c] = normal; });
}

// With `kSingle` every row is a run of its own: the whole work in one launch, the state in place.
template <bool kSingle>
__global__ void __launch_bounds__(kThreads, 1)
normalize_kernel(Batch batch, const float* x, Added added, NormVectors norm, Shift shift, int width,
                 float* out, float* normals) {
    __shared__ Room room;
    const int token = static_cast<int>(blockIdx.x);
    const size_t at = static_cast<size_t>(token) * width;
    const size_t size = static_cast<size_t>(batch.tokens) * width;
    for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
        out[at + c] = with_added(x, added, at + c, size);
    }
    float* state = batch.states + batch.rows[token].slot * batch.state_size + shift.offset;
    layer_norm(norm, width, room, [&](int c) { return out[at + c]; },
               [&](int c, float normal) {
                   if (kSingle) {
                       shift_channel(shift, token, c, width, normal, state[c]);
                       if (shift.keep) state[c] = normal;
                   }
                   normals[at + c] = normal;
               });
}

__global__ void __launch_bounds__(kThreads, 1)
shift_kernel(Batch batch, Shift shift, int width, const float* normals) {
    const int token = static_cast<int>(blockIdx.x);
    const size_t at = static_cast<size_t>(token) * width;
    const Row row = batch.rows[token];
    const float* before = row.first
        ? batch.states + row.slot * batch.state_size + shift.offset : normals + at - width;
    for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) {
        shift_channel(shift, token, c, width, normals[at + c], before[c]);
    }
}

// After shift_kernel, which still reads the state.
__global__ void __launch_bounds__(kThreads, 1)
keep_kernel(Batch batch, size_t offset, int width, const float* normals) {
    const Run run = batch.runs[blockIdx.x];
    float* state = batch.states + run.slot * batch.state_size + offset;
    const float* last = normals + static_cast<size_t>(run.first + run.count - 1) * width;
    for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads) state[c] = last[c];
}

__global__ void __launch_bounds__(kThreads, 1)
outputs_kernel(Batch batch, const float* x, Added added, NormVectors norm, int width, Activations out) {
    __shared__ Room room;
    const int output = static_cast<int>(blockIdx.x);
    const size_t at = static_cast<size_t>(batch.outputs[output]) * width;
    const size_t size = static_cast<size_t>(batch.tokens) * width;
    layer_norm(norm, width, room, [&](int c) { return with_added(x, added, at + c, size); },
               [&](int c, float normal) { out.put(output, c, normal); });
}

dim3 blocks(int count) { return dim3(static_cast<unsigned>(count)); }

}  // namespace

int embed(const float* rows, NormVectors norm, int tokens, int width, float* x, cudaStream_t stream) {
    return launch(embed_kernel, blocks(tokens), kThreads, stream, rows, norm, width, x);
}

int normalize_and_shift(const Batch& batch, const float* x, const Added& added, NormVectors norm,
                        const Shift& shift, int width, float* out, float* normal, cudaStream_t stream) {
    const dim3 rows = blocks(batch.tokens);
    if (batch.single()) {
        return launch(normalize_kernel<true>, rows, kThreads, stream, batch, x, added, norm, shift, width,
                      out, normal);
    }
    const int code = launch(normalize_kernel<false>, rows, kThreads, stream, batch, x, added, norm, shift,
                            width, out, normal);
    return code != 0 ? code : shift_normal(batch, normal, shift, width, stream);
}

int shift_normal(const Batch& batch, const float* normal, const Shift& shift, int width,
                 cudaStream_t stream) {
    const int code =
        launch(shift_kernel, blocks(batch.tokens), kThreads, stream, batch, shift, width, normal);
    if (code != 0 || !shift.keep) return code;
    return launch(keep_kernel, blocks(batch.run_count), kThreads, stream, batch, shift.offset, width,
                  normal);
}

int normalize_outputs(const Batch& batch, const float* x, const Added& added, NormVectors norm, int width,
                      Activations out, cudaStream_t stream) {
    return launch(outputs_kernel, blocks(batch.output_count), kThreads, stream, batch, x, added, norm,
                  width, out);
}

}  // namespace rwkv::cuda
