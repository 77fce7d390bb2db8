// A GPU made of fibers, to run CUDA sources where there is none: a C++ compiler reads them with this
// header in the place of CUDA's.
//
// Blocks run one after the other; the threads of a block take turns, each until it waits for others.
// The order of the turns is drawn from a seed, so that a missing barrier changes results, and threads
// that wait for ever end the program with a sentence. Work of a stream is done when somebody waits
// for the stream, as late as a real GPU may do it; only the default stream does it at once. Memory is that of the host, counted against a
// limit, so the address sanitizer sees every access outside of it.

#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <vector>

#define RWKV_EMULATED_GPU 1
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 << 10;

[[noreturn]] inline void die(const char* sentence) {
  std::fprintf(stderr, "emulated GPU: %s\n", sentence);
  std::abort();
}

// Saves the registers that a call must keep on the stack of the caller, and goes on with another.
extern "C" void emulation_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.weak emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
#else
#error "The emulated GPU knows how to switch fibers on x86-64 only."
#endif

struct Warp {
  unsigned size = 0, arrived = 0, round = 0;
  const void* given[kWarp];
};

struct Thread {
  std::vector<char> stack;
  void* sp = nullptr;
  dim3 index;
  unsigned id = 0;
  bool done = false;
  const unsigned* round = nullptr;  // goes on when *round is no longer `seen`
  unsigned seen = 0;
};

// One block while it runs.
struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned size = 0, arrived = 0, round = 0, finished = 0;
  void* scheduler = nullptr;
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
};

inline Block block;
inline uint64_t schedule_seed = 0;

inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline void wait(const unsigned* round) {
  Thread* own = block.current;
  own->round = round;
  own->seen = *round;
  emulation_switch(&own->sp, block.scheduler);
}

inline void enter() {
  (*block.body)();
  block.current->done = true;
  ++block.finished;
  void* unused;
  emulation_switch(&unused, block.scheduler);
  std::abort();
}

inline void prepare(Thread& thread) {
  thread.stack.resize(kStack);
  auto top = reinterpret_cast<uintptr_t>(thread.stack.data() + kStack) & ~uintptr_t{15};
  auto* slots = reinterpret_cast<void**>(top) - 8;
  slots[6] = reinterpret_cast<void*>(&enter);
  slots[7] = nullptr;
  thread.sp = slots;
  thread.done = false;
  thread.round = nullptr;
}

inline std::vector<unsigned> shuffled(unsigned count, uint64_t seed) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule_seed == 0) return order;
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[mix(seed + i) % i]);
  return order;
}

inline void run_block(const std::function<void()>& body) {
  const unsigned size = blockDim.x * blockDim.y * blockDim.z;
  if (size == 0 || size > 1024) die("a block has 1 to 1,024 threads");
  if (block.threads.size() < size) block.threads.resize(size);
  block.warps.assign((size + kWarp - 1) / kWarp, Warp{});
  block.size = size;
  block.arrived = block.finished = 0;
  block.body = &body;
  for (unsigned id = 0; id < size; ++id) {
    Thread& thread = block.threads[id];
    prepare(thread);
    thread.id = id;
    thread.index = dim3(id % blockDim.x, id / blockDim.x % blockDim.y, id / blockDim.x / blockDim.y);
    ++block.warps[id / kWarp].size;
  }
  const uint64_t seed = mix(schedule_seed + blockIdx.x * 7919u + blockIdx.y * 104729u);
  const auto warps = shuffled(static_cast<unsigned>(block.warps.size()), seed);
  while (block.finished < size) {
    bool progress = false;
    for (const unsigned warp : warps) {
      const auto lanes = shuffled(block.warps[warp].size, seed ^ warp);
      bool again = true;
      while (again) {
        again = false;
        for (const unsigned lane : lanes) {
          Thread& thread = block.threads[warp * kWarp + lane];
          if (thread.done || (thread.round != nullptr && *thread.round == thread.seen)) continue;
          again = progress = true;
          block.current = &thread;
          threadIdx = thread.index;
          emulation_switch(&block.scheduler, thread.sp);
        }
      }
    }
    if (!progress) die("threads wait for others that never come");
  }
}

// Every lane of a warp brings a value; the last one computes for all of them from what they gave.
template <class Compute>
inline void together(const void* given, Compute compute) {
  Thread* own = block.current;
  Warp& warp = block.warps[own->id / kWarp];
  warp.given[own->id % kWarp] = given;
  if (++warp.arrived < warp.size) {
    wait(&warp.round);
  } else {
    compute(warp.given);
    warp.arrived = 0;
    ++warp.round;
  }
}

inline unsigned lane() { return block.current->id % kWarp; }

template <class T, class Source>
inline T exchange(T value, Source source) {
  struct Item { T value; unsigned from; T result; };
  Item item{value, source(lane()), {}};
  together(&item, [](const void** all) {
    for (unsigned i = 0; i < kWarp; ++i) {
      auto* to = static_cast<Item*>(const_cast<void*>(all[i]));
      if (to != nullptr) to->result = static_cast<const Item*>(all[to->from])->value;
    }
  });
  return item.result;
}

struct Item16816 { float* c; const uint32_t* a; uint32_t b0, b1; };

inline float wide(uint32_t pair, unsigned half) {
  const uint32_t bits = half ? pair & 0xFFFF0000u : pair << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// mma.m16n8k16 of bfloat16, with the layout of fragments that PTX describes.
inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Item16816 item{c, a, b0, b1};
  together(&item, [](const void** all) {
    const auto at = [&](unsigned i) { return static_cast<const Item16816*>(all[i]); };
    float left[16][16], right[16][8];
    for (unsigned i = 0; i < kWarp; ++i) {
      const unsigned group = i / 4, place = i % 4 * 2;
      for (unsigned half = 0; half < 2; ++half) {
        for (unsigned part = 0; part < 4; ++part) {
          left[group + 8 * (part % 2)][place + half + 8 * (part / 2)] = wide(at(i)->a[part], half);
        }
        right[place + half][group] = wide(at(i)->b0, half);
        right[place + half + 8][group] = wide(at(i)->b1, half);
      }
    }
    float sums[16][8] = {};
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned k = 0; k < 16; ++k) {
        for (unsigned n = 0; n < 8; ++n) sums[row][n] += left[row][k] * right[k][n];
      }
    }
    for (unsigned i = 0; i < kWarp; ++i) {
      float* own = at(i)->c;
      const unsigned group = i / 4, place = i % 4 * 2;
      for (unsigned part = 0; part < 4; ++part) {
        own[part] += sums[group + 8 * (part / 2)][place + part % 2];
      }
    }
  });
}

// The memory and the streams of the device.

inline size_t memory_limit = size_t{1} << 40;
inline size_t memory_used = 0;
inline int64_t calls_left = -1;  // -1: the device never gets lost
inline int device_count = 1;
inline bool recording = false;
inline std::map<void*, size_t> allocations;

using Work = std::vector<std::function<void()>>;
inline Work pending, recorded;

// A stream that was made; the default one is null, and its work is done at once.
inline void* const kStream = &pending;

inline void submit(void* stream, std::function<void()> work) {
  if (stream == nullptr) return work();
  (recording ? recorded : pending).push_back(std::move(work));
}

inline void finish() {
  Work work;
  work.swap(pending);
  for (const auto& each : work) each();
}

}  // namespace emulation

// Intrinsics.

inline void __syncthreads() {
  emulation::Block& block = emulation::block;
  if (++block.arrived < block.size) {
    emulation::wait(&block.round);
  } else {
    block.arrived = 0;
    ++block.round;
  }
}
inline void __syncwarp(unsigned = 0xFFFFFFFFu) {
  emulation::together(nullptr, [](const void**) {});
}
template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, [=](unsigned lane) { return lane ^ unsigned(mask); });
}
template <class T>
inline T __shfl_sync(unsigned, T value, int from) {
  return emulation::exchange(value, [=](unsigned) { return unsigned(from) % emulation::kWarp; });
}
template <class T>
inline T __shfl_up_sync(unsigned, T value, unsigned delta) {
  return emulation::exchange(value, [=](unsigned lane) { return lane < delta ? lane : lane - delta; });
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    result |= unsigned(bytes >> (selector >> (4 * i) & 7) * 8 & 0xFF) << (8 * i);
  }
  return result;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
template <class T>
inline T __ldg(const T* p) { return *p; }
template <class T>
inline T __ldcs(const T* p) { return *p; }
template <class T>
inline T atomicAdd(T* to, T value) {
  const T old = *to;
  *to += value;
  return old;
}
template <class T>
inline T atomicMin(T* to, T value) {
  const T old = *to;
  *to = std::min(old, value);
  return old;
}
template <class T>
inline T atomicMax(T* to, T value) {
  const T old = *to;
  *to = std::max(old, value);
  return old;
}
template <class T>
inline T atomicOr(T* to, T value) {
  const T old = *to;
  *to |= value;
  return old;
}

// The runtime.

typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100,
                      cudaErrorInvalidDevice = 101, cudaErrorInsufficientDriver = 35,
                      cudaErrorDevicesUnavailable = 46;
typedef void* cudaStream_t;
typedef void* cudaEvent_t;
typedef emulation::Work* cudaGraph_t;
typedef emulation::Work* cudaGraphExec_t;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum { cudaStreamNonBlocking = 1, cudaHostAllocDefault = 0, cudaDeviceScheduleSpin = 1 };

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, pciBusID, pciDeviceID, pciDomainID, integrated;
  size_t totalGlobalMem;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {
// Every call of the runtime counts; once the device is lost, each of them fails.
inline cudaError_t call() {
  if (calls_left < 0) return cudaSuccess;
  if (calls_left == 0) {
    pending.clear();
    recorded.clear();
    recording = false;
    return cudaErrorDevicesUnavailable;
  }
  --calls_left;
  return cudaSuccess;
}
}  // namespace emulation

inline const char* cudaGetErrorString(cudaError_t code) {
  if (code == cudaErrorMemoryAllocation) return "out of memory";
  if (code == cudaErrorNoDevice) return "no CUDA-capable device is detected";
  return code == 0 ? "no error" : "the emulated device is gone";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return device < emulation::device_count ? emulation::call() : cudaErrorInvalidDevice;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = emulation::device_count;
  return emulation::device_count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  *found = cudaDeviceProp{};
  std::snprintf(found->name, sizeof found->name, "Emulated GPU %d", device);
  found->major = 8;
  found->multiProcessorCount = 4;
  found->totalGlobalMem = emulation::memory_limit;
  return emulation::call();
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = emulation::memory_limit;
  *free = emulation::memory_limit - emulation::memory_used;
  return emulation::call();
}
template <class T>
inline cudaError_t cudaMalloc(T** to, size_t size) {
  if (const cudaError_t lost = emulation::call()) return lost;
  if (size > emulation::memory_limit - emulation::memory_used) return cudaErrorMemoryAllocation;
  void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(memory, 0xFF, size);  // what nobody wrote is NaN
  emulation::memory_used += size;
  emulation::allocations[memory] = size;
  *to = static_cast<T*>(memory);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const auto found = emulation::allocations.find(memory);
  if (found == emulation::allocations.end()) emulation::die("memory is freed that is not there");
  emulation::memory_used -= found->second;
  emulation::allocations.erase(found);
  std::free(memory);
  return cudaSuccess;
}
template <class T>
inline cudaError_t cudaHostAlloc(T** to, size_t size, unsigned) {
  *to = static_cast<T*>(std::malloc(size));
  return emulation::call();
}
inline cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind,
                                   cudaStream_t stream) {
  emulation::submit(stream, [=] { std::memmove(to, from, size); });
  return emulation::call();
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                     size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  emulation::submit(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch,
                   static_cast<const char*>(from) + row * from_pitch, width);
    }
  });
  return emulation::call();
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  emulation::submit(stream, [=] { std::memset(to, value, size); });
  return emulation::call();
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = emulation::kStream;
  return emulation::call();
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  if (emulation::recording) emulation::die("a stream that records cannot be waited for");
  if (const cudaError_t lost = emulation::call()) return lost;
  emulation::finish();
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new int64_t{};
  return emulation::call();
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete static_cast<int64_t*>(event);
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  emulation::submit(stream, [=] {
    *static_cast<int64_t*>(event) = std::chrono::steady_clock::now().time_since_epoch().count();
  });
  return emulation::call();
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const std::chrono::steady_clock::duration passed(*static_cast<int64_t*>(end) -
                                                   *static_cast<int64_t*>(begin));
  *milliseconds = std::chrono::duration<float, std::milli>(passed).count();
  return emulation::call();
}
inline cudaError_t cudaDeviceSynchronize() { return cudaStreamSynchronize(nullptr); }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  emulation::recording = true;
  emulation::recorded.clear();
  return emulation::call();
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  emulation::recording = false;
  *graph = new emulation::Work(std::move(emulation::recorded));
  return emulation::call();
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new emulation::Work(*graph);
  return emulation::call();
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const auto& work : *exec) emulation::submit(stream, work);
  return emulation::call();
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const dim3 grid = config->gridDim, threads = config->blockDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) emulation::die("a grid must not be empty");
  const std::function<void()> body = [=] { kernel(arguments...); };
  emulation::submit(config->stream, [=] {
    gridDim = grid;
    blockDim = threads;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          emulation::run_block(body);
        }
      }
    }
  });
  return emulation::call();
}

// What a test may ask of the emulated device, beyond the interface of the sources.
extern "C" {
// The order in which threads take turns: 0 is that of their numbers, others are drawn.
inline __attribute__((used)) void emulation_schedule(uint64_t seed) { emulation::schedule_seed = seed; }
inline __attribute__((used)) void emulation_memory(uint64_t bytes) { emulation::memory_limit = bytes; }
inline __attribute__((used)) uint64_t emulation_memory_used() { return emulation::memory_used; }
// The device gets lost after this many more calls of the runtime; -1: never.
inline __attribute__((used)) void emulation_lose(int64_t calls) { emulation::calls_left = calls; }
inline __attribute__((used)) void emulation_devices(int count) { emulation::device_count = count; }
}
