// The two ways to multiply tiles, side by side.

#include "../../kernels/cuda/launch.cuh"
#include "../../kernels/cuda/primitives.cuh"

namespace {

// a [lanes, 4], b [lanes, 2] and c [lanes, 4] as fragments.
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* c, int by_shuffles) {
  const unsigned lane = threadIdx.x;
  const uint32_t left[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  float sums[4] = {c[4 * lane], c[4 * lane + 1], c[4 * lane + 2], c[4 * lane + 3]};
  if (by_shuffles != 0) {
    rwkv::cuda::multiply_by_shuffles(sums, left, b[2 * lane], b[2 * lane + 1]);
  } else {
    rwkv::cuda::multiply_tiles(sums, left, b[2 * lane], b[2 * lane + 1]);
  }
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sums[i];
}

}  // namespace

extern "C" int probe_multiply(const uint32_t* a, const uint32_t* b, float* c, int by_shuffles) {
  return rwkv::cuda::launch(multiply, dim3(1), 32, nullptr, a, b, c, by_shuffles);
}
