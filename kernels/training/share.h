// Jobs shared by threads that live as long as the call.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

template <typename F>
void share(int64_t jobs, int threads, F run) {
  auto work = [&](int id) {
    for (int64_t job = id; job < jobs; job += threads) run(job);
  };
  std::vector<std::thread> pool;
  for (int id = 1; id < threads; ++id) pool.emplace_back(work, id);
  work(0);
  for (auto& thread : pool) thread.join();
}
