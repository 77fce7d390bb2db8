#include "heads7.cuh"

#include "launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr float kDecay = -0.606530659712633f;  // -exp(-1/2)

template <int N>
struct Token {
    float4 r[N / 4], w[N / 4], k[N / 4], kk[N / 4], kk_a[N / 4];
    float v[N], gate[N];
};

__device__ inline float dot(float4 a, float4 b) { return (a.x * b.x + a.y * b.y) + (a.z * b.z + a.w * b.w); }

// The four lanes that share a row.
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// The sum over rows: what all but the two lowest bits of a lane tell apart.
__device__ inline float rows_sum(float x) {
#pragma unroll
    for (int mask = 4; mask < kWarp; mask *= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
    return x;
}

template <int kCount>
__device__ inline float in_order(const float* parts) {
    float sum = parts[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) sum += parts[i];
    return sum;
}

// What one channel of a token gets from the projections.
struct Channel {
    float r, k, v, w, a, share, gate, first_v;
};

__device__ inline Channel fetch(const Projected7& x, size_t at, bool first_layer) {
    Channel c{x.r[at], x.k[at], x.v[at], x.w[at], x.a[at], 0.0f, x.gate[at], 0.0f};
    if (!first_layer) {
        c.share = x.share[at];
        c.first_v = x.first_v[at];
    }
    return c;
}

// Four threads for each of the N rows of the state, which stay in registers for the whole run. A
// thread holds the columns 16 i + 4 part ... + 3 of its row. The first N threads also prepare a channel
// of each token.
template <int N>
__global__ void __launch_bounds__(4 * N, 1)
heads7_kernel(Batch batch, Vectors7 vectors, Projected7 x, float eps, size_t offset, int width,
              Activations y) {
    constexpr int kOwn = N / 16;              // float4 of a thread
    constexpr int kWarps = 4 * N / kWarp;
    constexpr int kFirstWarps = N / kWarp > 0 ? N / kWarp : 1;  // those of the first N threads
    __shared__ Token<N> now;
    __shared__ float lengths[kFirstWarps], bonuses[kFirstWarps], means[kWarps], variances[kWarps];
    const int id = static_cast<int>(threadIdx.x);
    const int row = id / 4, part = id % 4, warp = id / kWarp;
    const int head = static_cast<int>(blockIdx.x) * N;
    const Run run = batch.runs[blockIdx.y];
    float4* state = reinterpret_cast<float4*>(batch.states + run.slot * batch.state_size + offset +
                                              static_cast<size_t>(head + row) * N) + part;
    float4 s[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) s[i] = state[4 * i];
    const bool first_layer = vectors.v0 == nullptr;
    const size_t own = static_cast<size_t>(head) + id;
    Channel next{};
    if (id < N) next = fetch(x, static_cast<size_t>(run.first) * width + own, first_layer);
    for (int token = run.first; token < run.first + run.count; ++token) {
        const Channel in = next;
        // The next token is on its way while this one is computed.
        if (id < N && token + 1 < run.first + run.count) {
            next = fetch(x, static_cast<size_t>(token + 1) * width + own, first_layer);
        }
        float kk = 0, a = 0, bonus = 0;
        if (id < N) {
            const int c = head + id;
            const float r = in.r;
            float k = in.k;
            a = sigmoid(in.a + vectors.a0[c]);
            float v = in.v;
            if (first_layer) {
                x.first_v[static_cast<size_t>(token) * width + own] = v;
            } else {
                v = __fmaf_rn(in.first_v - v, sigmoid(in.share + vectors.v0[c]), v);
            }
            kk = k * vectors.k_k[c];
            k *= __fmaf_rn(a - 1, vectors.k_a[c], 1.0f);
            now.v[id] = v;
            now.gate[id] = in.gate;
            reinterpret_cast<float*>(now.r)[id] = r;
            reinterpret_cast<float*>(now.k)[id] = k;
            reinterpret_cast<float*>(now.w)[id] = expf(kDecay * sigmoid(in.w + vectors.w0[c]));
            bonus = r * k * vectors.r_k[c];
        }
        if (warp < kFirstWarps) {
            const float length = warp_sum(kk * kk);
            bonus = warp_sum(bonus);
            if (id % kWarp == 0) {
                lengths[warp] = length;
                bonuses[warp] = bonus;
            }
        }
        __syncthreads();
        if (id < N) {
            kk /= fmaxf(sqrtf(in_order<kFirstWarps>(lengths)), 1e-12f);
            reinterpret_cast<float*>(now.kk)[id] = kk;
            reinterpret_cast<float*>(now.kk_a)[id] = kk * a;
        }
        __syncthreads();
        float removed = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) removed -= dot(s[i], now.kk[4 * i + part]);
        removed = quad_sum(removed);
        const float v = now.v[row];
        float out = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const float4 w = now.w[4 * i + part], key = now.k[4 * i + part], b = now.kk_a[4 * i + part];
            s[i].x = __fmaf_rn(s[i].x, w.x, __fmaf_rn(removed, b.x, v * key.x));
            s[i].y = __fmaf_rn(s[i].y, w.y, __fmaf_rn(removed, b.y, v * key.y));
            s[i].z = __fmaf_rn(s[i].z, w.z, __fmaf_rn(removed, b.z, v * key.z));
            s[i].w = __fmaf_rn(s[i].w, w.w, __fmaf_rn(removed, b.w, v * key.w));
            out += dot(s[i], now.r[4 * i + part]);
        }
        out = quad_sum(out);
        const float sum = rows_sum(out);
        if (id % kWarp == 0) means[warp] = sum;
        __syncthreads();
        const float mean = in_order<kWarps>(means) / N;
        const float centred = out - mean;
        const float squares = rows_sum(centred * centred);
        if (id % kWarp == 0) variances[warp] = squares;
        __syncthreads();
        const float scale = 1.0f / sqrtf(in_order<kWarps>(variances) / N + eps);
        if (part == 0) {
            const int c = head + row;
            const float normal = __fmaf_rn(centred * scale, vectors.ln_x.weight[c], vectors.ln_x.bias[c]);
            y.put(token, c, __fmaf_rn(in_order<kFirstWarps>(bonuses), v, normal) * now.gate[row]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) state[4 * i] = s[i];
}

template <int N>
int launch_heads(const Batch& batch, const Vectors7& vectors, const Projected7& x, int heads, float eps,
                 size_t offset, Activations y, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(batch.run_count));
    return launch(heads7_kernel<N>, grid, 4 * N, stream, batch, vectors, x, eps, offset, heads * N, y);
}

}  // namespace

int mix_heads7(const Batch& batch, const Vectors7& vectors, const Projected7& x, int heads, int head_size,
               float eps, size_t offset, Activations y, cudaStream_t stream) {
    switch (head_size) {
        case 16: return launch_heads<16>(batch, vectors, x, heads, eps, offset, y, stream);
        case 32: return launch_heads<32>(batch, vectors, x, heads, eps, offset, y, stream);
        case 64: return launch_heads<64>(batch, vectors, x, heads, eps, offset, y, stream);
        default: return launch_heads<128>(batch, vectors, x, heads, eps, offset, y, stream);
    }
}

}  // namespace rwkv::cuda
