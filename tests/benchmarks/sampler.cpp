// The time for the choice of one token of 65,536 logits as an answer does it: penalties, the copy of
// the logits and the search for numbers that are not finite are part of it. `sampler ROUNDS`
#include "rwkv/sampler.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "rwkv/dispatch.h"

int main(int count, char** arguments) {
    using Clock = std::chrono::steady_clock;
    const int rounds = count > 1 ? std::atoi(arguments[1]) : 300;
    const rwkv::Kernels& kernels = rwkv::choose_kernels("");
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 2.5);
    std::vector<float> logits(65536);
    for (float& logit : logits) logit = normal(random);
    for (std::size_t i = 0; i < 50; ++i) logits[i * 1000] += 8;
    rwkv::Penalties penalties(0.5, 0.3, 0.99, std::vector<bool>(logits.size()));
    for (std::uint32_t id = 0; id < 1400; id += 7) penalties.count(id);
    const rwkv::SamplingSettings settings[] = {
        {0, 1, 0, 0}, {1, 1, 0, 0}, {1, 0.5, 0, 0}, {1, 0.5, 40, 0.05}, {0.8, 0.95, 40, 0.05},
        {1, 0.99, 0, 0},
    };
    std::printf("%s\n", kernels.name);
    for (const rwkv::SamplingSettings& s : settings) {
        rwkv::Sampler sampler(kernels);
        std::vector<float> adjusted;
        std::vector<double> times;
        for (int i = 0; i < rounds; ++i) {
            const Clock::time_point begun = Clock::now();
            adjusted = logits;
            penalties.apply(adjusted);
            sampler.choose(adjusted, s, rwkv::random_number(7, static_cast<std::uint64_t>(i)));
            if (!rwkv::all_finite(logits.data(), logits.size())) return 1;
            times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begun).count());
        }
        std::sort(times.begin(), times.end());
        std::printf("temperature %.1f, top-p %.2f, top-k %d, min-p %.2f: %.1f microseconds\n",
                    s.temperature, s.top_p, static_cast<int>(s.top_k), s.min_p,
                    times[times.size() / 2]);
    }
}
