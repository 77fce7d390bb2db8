#include "heads5.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kParts = 4;  // threads for each column of the state

// Thread (part, column) holds the rows part * N / 4 ... of its column [key, value] in registers for the
// whole run. The threads of part 0 also prepare a channel of each token.
template <int N>
__global__ void __launch_bounds__(kParts* N, 1)
heads5_kernel(Batch batch, Vectors5 vectors, Projected5 x, float eps, size_t offset, int width,
              Activations y) {
    constexpr int kOwn = N / kParts;
    constexpr int kWarps = N / kWarp > 0 ? N / kWarp : 1;  // of part 0
    __shared__ float r[N], k[N], w[N], first[N], sums[kParts][N], room[2][kWarps];
    const int id = static_cast<int>(threadIdx.x);
    const int column = id % N, part = id / N;
    const int head = static_cast<int>(blockIdx.x) * N;
    const Run run = batch.runs[blockIdx.y];
    float* state = batch.states + run.slot * batch.state_size + offset + static_cast<size_t>(head) * N +
                   static_cast<size_t>(part) * kOwn * N + column;
    float s[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) s[i] = state[i * N];
    if (part == 0) {
        first[column] = vectors.first[head + column];
        w[column] = vectors.decay[head + column];
    }
    for (int token = run.first; token < run.first + run.count; ++token) {
        const size_t at = static_cast<size_t>(token) * width + head + column;
        const float v = x.v[at];
        if (part == 0) {
            r[column] = x.r[at];
            k[column] = x.k[at];
            if (x.w != nullptr) w[column] = expf(-expf(x.w[at] + vectors.decay[head + column]));
        }
        __syncthreads();
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int row = part * kOwn + i;
            const float added = k[row] * v;
            sum = __fmaf_rn(r[row], __fmaf_rn(first[row], added, s[i]), sum);
            s[i] = __fmaf_rn(s[i], w[row], added);
        }
        sums[part][column] = sum;
        __syncthreads();
        // The norm is computed by the warps of part 0, with nothing from the rest of a half warp.
        float out = 0;
        if (id < kWarps * kWarp) {
            if (part == 0) out = (sums[0][column] + sums[1][column]) + (sums[2][column] + sums[3][column]);
            const float total = warp_sum(out);
            if (id % kWarp == 0) room[0][id / kWarp] = total;
        }
        __syncthreads();
        float mean = 0;
        for (int i = 0; i < kWarps; ++i) mean += room[0][i];
        mean /= N;
        const float centred = part == 0 ? out - mean : 0.0f;
        if (id < kWarps * kWarp) {
            const float total = warp_sum(centred * centred);
            if (id % kWarp == 0) room[1][id / kWarp] = total;
        }
        __syncthreads();
        if (part == 0) {
            float variance = 0;
            for (int i = 0; i < kWarps; ++i) variance += room[1][i];
            const float scale = 1.0f / sqrtf(variance / N + eps);
            const int c = head + column;
            const float normal = __fmaf_rn(centred * scale, vectors.ln_x.weight[c], vectors.ln_x.bias[c]);
            y.put(token, c, x.gate == nullptr ? normal : normal * x.gate[at]);
        }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) state[i * N] = s[i];
}

template <int N>
int launch_heads(const Batch& batch, const Vectors5& vectors, const Projected5& x, int heads, float eps,
                 size_t offset, Activations y, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(batch.run_count));
    return launch(heads5_kernel<N>, grid, kParts * N, stream, batch, vectors, x, eps, offset, heads * N, y);
}

constexpr int kChannels = 64;  // of a block

// A NaN on either side is the result.
__device__ inline float larger(float a, float b) { return a > b || a != a ? a : b; }

__global__ void __launch_bounds__(kChannels)
channels4_kernel(Batch batch, Vectors4 vectors, Projected4 x, int channels, size_t offset, Activations y) {
    const int c = static_cast<int>(blockIdx.x) * kChannels + static_cast<int>(threadIdx.x);
    if (c >= channels) return;
    const Run run = batch.runs[blockIdx.y];
    float* state = batch.states + run.slot * batch.state_size + offset + c;
    float numerator = state[0], denominator = state[channels], exponent = state[2 * channels];
    const float decay = vectors.decay[c], first = vectors.first[c];
    for (int token = run.first; token < run.first + run.count; ++token) {
        const size_t at = static_cast<size_t>(token) * channels + c;
        const float k = x.k[at], v = x.v[at];
        const float bonus = first + k;
        float greatest = larger(exponent, bonus);
        float past = expf(exponent - greatest), now = expf(bonus - greatest);
        const float average = __fmaf_rn(past, numerator, now * v) / __fmaf_rn(past, denominator, now);
        y.put(token, c, average * x.r[at]);
        const float aged = exponent + decay;
        greatest = larger(aged, k);
        past = expf(aged - greatest);
        now = expf(k - greatest);
        numerator = __fmaf_rn(past, numerator, now * v);
        denominator = __fmaf_rn(past, denominator, now);
        exponent = greatest;
    }
    state[0] = numerator;
    state[channels] = denominator;
    state[2 * channels] = exponent;
}

}  // namespace

int mix_heads5(const Batch& batch, const Vectors5& vectors, const Projected5& x, int heads, int head_size,
               float eps, size_t offset, Activations y, cudaStream_t stream) {
    switch (head_size) {
        case 16: return launch_heads<16>(batch, vectors, x, heads, eps, offset, y, stream);
        case 32: return launch_heads<32>(batch, vectors, x, heads, eps, offset, y, stream);
        case 64: return launch_heads<64>(batch, vectors, x, heads, eps, offset, y, stream);
        default: return launch_heads<128>(batch, vectors, x, heads, eps, offset, y, stream);
    }
}

int mix_channels4(const Batch& batch, const Vectors4& vectors, const Projected4& x, int channels,
                  size_t offset, Activations y, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(divide_up(channels, kChannels)),
                    static_cast<unsigned>(batch.run_count));
    return launch(channels4_kernel, grid, kChannels, stream, batch, vectors, x, channels, offset, y);
}

}  // namespace rwkv::cuda
