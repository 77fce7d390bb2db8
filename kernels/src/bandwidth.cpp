#include "rwkv/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "rwkv/thread_pool.h"

namespace rwkv {

double read_bandwidth(const Kernels& kernels, std::size_t threads) {
    using Clock = std::chrono::steady_clock;
    constexpr std::size_t kColumns = 4096;
    constexpr std::size_t kRows = 16384;
    constexpr std::size_t kBlock = 32;
    constexpr int kPasses = 5;
    const std::vector<float> memory(kRows * kColumns, 1.0f);
    const std::vector<float> x(kColumns, 1.0f);
    std::vector<float> y(kRows);
    const Matrix matrix{reinterpret_cast<const unsigned char*>(memory.data()), kRows, kColumns,
                        Weights::f32};
    ThreadPool pool(threads);
    double best = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const Clock::time_point start = Clock::now();
        pool.run(kRows / kBlock, [&](std::size_t block) {
            // For float32 weights activations are not rounded.
            const auto* input = reinterpret_cast<const unsigned char*>(x.data());
            kernels.matmul(matrix, block * kBlock, (block + 1) * kBlock, input, 1, y.data(), kRows);
        });
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::max(best, static_cast<double>(memory.size() * sizeof(float)) / seconds);
    }
    return best;
}

}  // namespace rwkv
