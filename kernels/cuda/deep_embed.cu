#include "deep_embed.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) as_activations_kernel(const float* x, int channels, Activations out) {
    const int token = static_cast<int>(blockIdx.x);
    for (int c = static_cast<int>(threadIdx.x); c < channels; c += kThreads) {
        out.put(token, c, x[static_cast<size_t>(token) * channels + c]);
    }
}

__global__ void __launch_bounds__(kSide)
turn_kernel(const float* inner, const float* own, int stride, const float* added, Activations turned) {
    const int token = static_cast<int>(blockIdx.x), column = static_cast<int>(threadIdx.x);
    const float* mine = own + static_cast<size_t>(token) * stride;
    const float* more = added + static_cast<size_t>(token) * kSide * kSide;
    float sum = 0;
    for (int i = 0; i < kSide; ++i) {
        const int at = i * kSide + column;
        sum = __fmaf_rn(inner[token * kSide + i], mine[at] + more[at], sum);
    }
    turned.put(token, column, sum);
}

__global__ void __launch_bounds__(kThreads)
scale_kernel(float* hidden, const float* scale, const float* base, int channels) {
    const int c = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
    if (c >= channels) return;
    const size_t at = static_cast<size_t>(blockIdx.x) * channels + c;
    hidden[at] *= scale[at] + base[c];
}

dim3 blocks(int tokens, int others = 1) {
    return dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(others));
}

}  // namespace

int as_activations(const float* x, int tokens, int channels, Activations out, cudaStream_t stream) {
    return launch(as_activations_kernel, blocks(tokens), kThreads, stream, x, channels, out);
}

int turn(const float* inner, const float* own, int stride, const float* added, int tokens,
         Activations turned, cudaStream_t stream) {
    return launch(turn_kernel, blocks(tokens), kSide, stream, inner, own, stride, added, turned);
}

int scale_hidden(float* hidden, const float* scale, const float* base, int tokens, int channels,
                 cudaStream_t stream) {
    return launch(scale_kernel, blocks(tokens, divide_up(channels, kThreads)), kThreads, stream, hidden,
                  scale, base, channels);
}

}  // namespace rwkv::cuda
