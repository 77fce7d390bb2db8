// The RWKV-7 recurrence with its gradient, for training on a GPU: the contract of `wkv7.cpp`.
//
// One block for each sequence and head, 64 threads. Thread i owns the value i, a row of the state
// S[value][key] in registers; in the backward pass it also owns the key i, a column of the gradient
// of S in shared memory, so that no sum crosses threads. The backward pass computes the states of a chunk again from
// the stored one before it and keeps them in `scratch`: nothing is divided by a decay.
// Inputs are float32 or bfloat16, each as its bit in `bf16` says (1 << its place in r, w, k, v, a,
// b); states, sums and results are float32.

#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kHead = 64;
constexpr int kChunk = 16;  // steps between two stored states
constexpr int kState = kHead * kHead;
constexpr int kSums = 4;  // running sums of one dot product, to hide the latency of additions

struct Inputs {
  const void *r, *w, *k, *v, *a, *b;
  int bf16;
};

struct Gradients {
  float *r, *w, *k, *v, *a, *b;
};

__device__ inline float fetch(const void* from, int bf16, int place, int64_t at) {
  if (bf16 >> place & 1) {
    return __uint_as_float(uint32_t{static_cast<const uint16_t*>(from)[at]} << 16);
  }
  return static_cast<const float*>(from)[at];
}

struct alignas(16) Step {
  float r[kHead], w[kHead], k[kHead], v[kHead], a[kHead], b[kHead];
};

__device__ inline void fetch_step(Step& now, const Inputs& x, int i, int64_t at) {
  now.r[i] = fetch(x.r, x.bf16, 0, at);
  now.w[i] = fetch(x.w, x.bf16, 1, at);
  now.k[i] = fetch(x.k, x.bf16, 2, at);
  now.v[i] = fetch(x.v, x.bf16, 3, at);
  now.a[i] = fetch(x.a, x.bf16, 4, at);
  now.b[i] = fetch(x.b, x.bf16, 5, at);
}

__device__ inline float total(const float (&sums)[kSums]) {
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

__device__ inline float dot(const float (&row)[kHead], const float* other) {
  float sums[kSums] = {};
#pragma unroll
  for (int j = 0; j < kHead; ++j) sums[j % kSums] += row[j] * other[j];
  return total(sums);
}

__device__ inline void advance(float (&row)[kHead], const Step& now, float removed, float v) {
#pragma unroll
  for (int j = 0; j < kHead; ++j) {
    row[j] = row[j] * now.w[j] + removed * now.b[j] + v * now.k[j];
  }
}

__global__ void __launch_bounds__(kHead)
forward(int64_t steps, int64_t heads, Inputs x, const float* initial, float* y, float* last,
        float* stored) {
  __shared__ Step now;
  const int i = static_cast<int>(threadIdx.x);
  const int64_t job = blockIdx.x;
  const int64_t chunks = (steps + kChunk - 1) / kChunk;
  int64_t at = (job / heads * steps * heads + job % heads) * kHead + i;
  float row[kHead];
#pragma unroll
  for (int j = 0; j < kHead; ++j) row[j] = initial ? initial[job * kState + i * kHead + j] : 0.0f;
  for (int64_t t = 0; t < steps; ++t, at += heads * kHead) {
    if (stored && t % kChunk == 0) {
      float* to = stored + (job * chunks + t / kChunk) * kState + i;
#pragma unroll
      for (int j = 0; j < kHead; ++j) to[j * kHead] = row[j];
    }
    __syncthreads();
    fetch_step(now, x, i, at);
    __syncthreads();
    advance(row, now, dot(row, now.a), now.v[i]);
    y[at] = dot(row, now.r);
  }
#pragma unroll
  for (int j = 0; j < kHead; ++j) last[job * kState + i * kHead + j] = row[j];
}

// The states before each step of a chunk, [step][key][value], and what each step removed.
__device__ inline void replay(int64_t count, int64_t stride, const Inputs& x, int64_t at,
                              const float* stored, float* states, float (*removed)[kHead],
                              Step& now) {
  const int i = static_cast<int>(threadIdx.x);
  float row[kHead];
#pragma unroll
  for (int j = 0; j < kHead; ++j) row[j] = stored[j * kHead + i];
  for (int64_t step = 0; step < count; ++step) {
    __syncthreads();
    fetch_step(now, x, i, at + step * stride);
    __syncthreads();
    float* to = states + step * kState + i;
#pragma unroll
    for (int j = 0; j < kHead; ++j) to[j * kHead] = row[j];
    const float sa = dot(row, now.a);
    removed[step][i] = sa;
    advance(row, now, sa, now.v[i]);
  }
}

__global__ void __launch_bounds__(kHead)
backward(int64_t steps, int64_t heads, Inputs x, const float* stored, const float* dy,
         const float* d_last, Gradients d, float* d_initial, float* scratch) {
  __shared__ Step now;
  alignas(16) __shared__ float removed[kChunk][kHead];
  __shared__ float columns[kHead][kHead];  // the gradient of S; only thread i uses [all values][i]
  alignas(16) __shared__ float given[kHead];      // the gradient of y
  alignas(16) __shared__ float d_removed[kHead];  // that of what the step removed
  const int i = static_cast<int>(threadIdx.x);
  const int64_t job = blockIdx.x;
  const int64_t stride = heads * kHead;
  const int64_t chunks = (steps + kChunk - 1) / kChunk;
  const int64_t begin = (job / heads * steps * heads + job % heads) * kHead + i;
  float* states = scratch + job * kChunk * kState;
  float row[kHead];  // the gradient of S[i][all keys]
#pragma unroll
  for (int j = 0; j < kHead; ++j) {
    row[j] = d_last ? d_last[job * kState + i * kHead + j] : 0.0f;
    columns[j][i] = d_last ? d_last[job * kState + j * kHead + i] : 0.0f;
  }
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t first = chunk * kChunk;
    const int64_t count = steps - first < kChunk ? steps - first : kChunk;
    replay(count, stride, x, begin + first * stride, stored + (job * chunks + chunk) * kState,
           states, removed, now);
    for (int64_t step = count - 1; step >= 0; --step) {
      const int64_t at = begin + (first + step) * stride;
      __syncthreads();
      fetch_step(now, x, i, at);
      given[i] = dy[at];
      __syncthreads();
      const float dy_i = given[i];
#pragma unroll
      for (int j = 0; j < kHead; ++j) row[j] += dy_i * now.r[j];
      d.v[at] = dot(row, now.k);
      const float dsa = dot(row, now.b);
      d_removed[i] = dsa;
#pragma unroll
      for (int j = 0; j < kHead; ++j) row[j] = row[j] * now.w[j] + dsa * now.a[j];
      __syncthreads();
      const float r = now.r[i], w = now.w[i], k = now.k[i], a = now.a[i], b = now.b[i];
      const float* before = states + step * kState + i * kHead;
      float dr = 0.0f, dw = 0.0f, dk = 0.0f, da = 0.0f, db = 0.0f;
#pragma unroll 8
      for (int q = 0; q < kHead; ++q) {
        const float s = before[q], sa = removed[step][q], v = now.v[q];
        const float g = columns[q][i] + given[q] * r;
        dr += (s * w + sa * b + v * k) * given[q];
        dw += g * s;
        dk += g * v;
        da += s * d_removed[q];
        db += g * sa;
        columns[q][i] = g * w + d_removed[q] * a;
      }
      d.r[at] = dr;
      d.w[at] = dw;
      d.k[at] = dk;
      d.a[at] = da;
      d.b[at] = db;
    }
  }
#pragma unroll
  for (int j = 0; j < kHead; ++j) d_initial[job * kState + i * kHead + j] = row[j];
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, void* stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kHead);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

extern "C" {

int64_t wkv7_chunks(int64_t steps) { return (steps + kChunk - 1) / kChunk; }

const char* wkv7_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

// As in wkv7.cpp, for pointers of the device, on `stream`. Returns a cudaError_t.
int wkv7_forward(int64_t batch, int64_t steps, int64_t heads, const void* r, const void* w,
                 const void* k, const void* v, const void* a, const void* b, const float* initial,
                 float* y, float* last, float* stored, int bf16, void* stream) {
  return launch(forward, batch * heads, stream, steps, heads, Inputs{r, w, k, v, a, b, bf16},
                initial, y, last, stored);
}

// `scratch` holds [B, H, 16, 64, 64].
int wkv7_backward(int64_t batch, int64_t steps, int64_t heads, const void* r, const void* w,
                  const void* k, const void* v, const void* a, const void* b, const float* stored,
                  const float* dy, const float* d_last, float* dr, float* dw, float* dk, float* dv,
                  float* da, float* db, float* d_initial, float* scratch, int bf16, void* stream) {
  return launch(backward, batch * heads, stream, steps, heads, Inputs{r, w, k, v, a, b, bf16},
                stored, dy, d_last, Gradients{dr, dw, dk, dv, da, db}, d_initial, scratch);
}

}  // extern "C"
